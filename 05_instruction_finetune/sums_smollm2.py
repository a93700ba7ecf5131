"""Can a reward that a program checks make a model right? SmolLM2 and sums of two numbers; runs of lesson 5.5.

    python 05_instruction_finetune/sums_smollm2.py

Writes sums_smollm2.json beside this file (or --out FILE) after each run; the same command goes on where it stopped.
Two arms train the last blocks, in as many steps, each on six sums: "reward" draws eight answers to each sum, and those
that are finished and end in the right number earn 1 (GRPO); "shown" reads the right answers, as lesson 5.1 does. A row
holds the greedy answers to 100 sums that no run trained on; how many are right in other words, of eight drawn ones, and
of 40 questions about other things. A seed decides the sums and the draws.
"""

import argparse
import copy
import random
import re
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from instruct_smollm2 import encode_chat  # noqa: E402
from policy_runs import QUESTIONS, answered, train_for_reward  # noqa: E402
from preference_smollm2 import freeze_all_but_last  # noqa: E402
from runs import check_base, encoded, train_timed  # noqa: E402

from shared.checkpoints import load_base  # noqa: E402
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.generation import generate  # noqa: E402
from shared.instructions import instruction_loader  # noqa: E402
from shared.policy import sample_group  # noqa: E402
from shared.runtime import get_device, made_on  # noqa: E402

OUT = Path(__file__).with_name("sums_smollm2.json")
NUMBERS = (2, 30)
ASKED, OTHER = "What is {} + {}? Answer with the number only.", "Add {} and {}."
REWARD = {"steps": 20, "n_prompts": 6, "n": 8, "max_new_tokens": 16, "lr": 1e-4, "beta": 0.0, "rows": 48}
SHOWN = {"lr": 1e-4, "min_lr": 1e-4, "weight_decay": 0.0}
ARMS = {"reward": REWARD, "shown": SHOWN}
TRAINED_BLOCKS = 6  # of SmolLM2's 30: the last ones, to save time
DRAWN = 50  # of the held-out sums get eight drawn answers each
END = "<|im_end|>"


def sums():
    """(training, held-out) sums (a, b): of two numbers once, in one order, so that no sum is in both, turned round."""
    low, high = NUMBERS
    coin = random.Random(0)
    found = [(a, b) if coin.random() < 0.5 else (b, a) for a in range(low, high + 1) for b in range(a + 1, high + 1)]
    coin.shuffle(found)
    return found[100:], found[:100]


def is_right(pair, answer):
    """Whether the last number of an answer is the sum: "11 + 30 = 41." is right, "41, no: 31" is not."""
    numbers = re.findall(r"\d+(?:,\d{3})*", answer)
    return bool(numbers) and int(numbers[-1].replace(",", "")) == sum(pair)


def right_and_finished(prompts, answers):
    """The reward: 1 for an answer that ends by itself, and with the right number; else 0."""
    pairs = [tuple(map(int, re.findall(r"\d+", prompt)[:2])) for prompt in prompts]
    return [float(answer.endswith(END) and is_right(pair, answer))
            for pair, answer in zip(pairs, answers, strict=True)]


def entry(pair, words=ASKED):
    return {"instruction": words.format(*pair), "input": "", "output": "{} + {} = {}.".format(*pair, sum(pair))}


def prompts_of(pairs, tokenizer, words=ASKED):
    return [encode_chat(entry(pair, words), tokenizer)[0] for pair in pairs]


def greedy(model, tokenizer, pairs, words=ASKED):
    """Greedy answers to the sums, asked in `words`: a list of texts."""
    prompts, end = prompts_of(pairs, tokenizer, words), tokenizer.end_of_turn
    made = generate(model, prompts, REWARD["max_new_tokens"], eos_id=end)[:, max(map(len, prompts)) :].tolist()
    return [tokenizer.decode(ids[: ids.index(end) + 1] if end in ids else ids) for ids in made]


def measure(model, tokenizer):
    """What a row of the table says of a model; all sums are held out."""
    pairs = sums()[1]
    texts, others = (greedy(model, tokenizer, pairs, words) for words in (ASKED, OTHER))
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(0)
    drawn = sample_group(model, tokenizer, prompts_of(pairs[:DRAWN], tokenizer), 8, REWARD["max_new_tokens"],
                         stop_id=tokenizer.end_of_turn, generator=generator)  # fmt: skip
    some = [sum(is_right(pair, answer) for answer in drawn.answers[8 * i : 8 * i + 8])
            for i, pair in enumerate(pairs[:DRAWN])]  # fmt: skip
    return {"texts": texts, "right_in_other_words": sum(map(is_right, pairs, others)), "right_of_eight_drawn": some,
            "questions": answered(model, tokenizer, QUESTIONS[24:])["right"]}  # fmt: skip


def run(base, tokenizer, arm, seed):
    """A row of the table: a copy of `base`, trained."""
    model, training = copy.deepcopy(base), sums()[0]
    freeze_all_but_last(model, TRAINED_BLOCKS)
    if arm == "reward":
        row = train_for_reward(model, tokenizer, prompts_of(training, tokenizer), right_and_finished, REWARD, seed=seed,
                               reference=base, stop_id=tokenizer.end_of_turn)  # fmt: skip
    else:
        some = random.Random(seed).sample(training, REWARD["steps"] * REWARD["n_prompts"])
        items = encoded(map(entry, some), tokenizer, encode_chat)
        row = train_timed(model, instruction_loader(items, REWARD["n_prompts"], seed=seed), **SHOWN, seed=seed,
                          progress=False)  # fmt: skip
    return row | measure(model, tokenizer)


def main(argv=None):
    """`python 05_instruction_finetune/sums_smollm2.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: sums_smollm2.json)")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}; it is at least 1")
    conditions = {"numbers": NUMBERS, "words": [ASKED, OTHER], "arms": ARMS, "trained_blocks": TRAINED_BLOCKS}
    try:
        rows = continue_table(args.out, conditions)
    except ValueError as error:
        parser.error(str(error))
    base, tokenizer = load_base("smollm2")
    base.to(get_device())
    check_base(parser, args.out, rows, tokenizer.name)
    for arm, seed in [("as it came", None), *((arm, seed) for seed in range(args.seeds) for arm in ARMS)]:
        if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
            continue
        started = time.perf_counter()
        found = measure(base, tokenizer) if seed is None else run(base, tokenizer, arm, seed)
        rows.append({"arm": arm, "seed": seed, "base": tokenizer.name} | made_on() | found)
        write_table(args.out, conditions | {"runs": rows})
        right = sum(map(is_right, sums()[1], found["texts"]))
        print(f"{arm}, seed {seed}: {right} of 100 right, {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
