"""Can a reward that a program checks make a model right? SmolLM2 and sums of two numbers; runs of lesson 5.5.

    python 05_instruction_finetune/sums_smollm2.py                                  # three seeds: about 20 minutes

Writes sums_smollm2.json beside this file (or --out FILE) after each run; the same command goes on where it stopped.
SmolLM2 is asked for a sum, its answer is begun for it ("27 + 25 ="), and the first number that follows is right or not:
so no run can earn anything by another form of answer. Two arms train the last blocks on the same sums in the same
order, as many in a step: "reward" draws eight answers to each, and those with the right number earn 1 (GRPO); "shown"
reads the right numbers. A row holds the greedy answers to 100 sums that no run trained on and to 100 of larger numbers,
how many of eight drawn answers are right, and the answers to 40 questions about other things.
"""

import argparse
import copy
import random
import re
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from instruct_smollm2 import encode_chat  # noqa: E402
from policy_runs import QUESTIONS, answered, train_for_reward  # noqa: E402
from preference_smollm2 import freeze_all_but_last  # noqa: E402
from runs import check_base, train_timed  # noqa: E402

from shared.checkpoints import load_base  # noqa: E402
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.generation import generate  # noqa: E402
from shared.instructions import collate_instructions  # noqa: E402
from shared.policy import sample_group  # noqa: E402
from shared.runtime import get_device, made_on  # noqa: E402

OUT = Path(__file__).with_name("sums_smollm2.json")
SMALL, LARGER = (2, 30), (31, 60)
REWARD = {"steps": 16, "n_prompts": 16, "n": 8, "max_new_tokens": 4, "lr": 1e-4, "beta": 0.0, "rows": 128}
SHOWN = {"lr": 1e-4, "min_lr": 1e-4, "weight_decay": 0.0}
ARMS = {"reward": REWARD, "shown": SHOWN}
TRAINED_BLOCKS = 6  # of SmolLM2's 30: the last ones, to save time
DRAWN = 50  # of the held-out sums get eight drawn answers each


def sums(numbers=SMALL):
    """(the others, 100) sums (a, b) of two numbers, each pair once and in one order: b + a stands nowhere."""
    low, high = numbers
    coin = random.Random(0)
    found = [(a, b) if coin.random() < 0.5 else (b, a) for a in range(low, high + 1) for b in range(a + 1, high + 1)]
    coin.shuffle(found)
    return found[100:], found[:100]


def is_right(pair, answer):
    """Whether the first number of an answer is the sum: " 52, or 54" is right for 27 + 25, and " 5 2" is not."""
    number = re.match(r"\s*(\d+)", answer)
    return bool(number) and int(number[1]) == sum(pair)


def right_number(prompts, answers):
    """The reward: 1 for an answer that goes on with the right number, else 0."""
    pairs = [map(int, re.search(r"(\d+) \+ (\d+) =$", prompt).groups()) for prompt in prompts]
    return [float(is_right(pair, answer)) for pair, answer in zip(pairs, answers, strict=True)]


def prompt_of(pair, tokenizer):
    """Ids of a question in ChatML and of the beginning of its answer."""
    asked = {"instruction": "What is {} + {}?".format(*pair), "input": "", "output": ""}
    return encode_chat(asked, tokenizer)[0] + tokenizer.encode_ordinary("{} + {} =".format(*pair))


def greedy(model, tokenizer, pairs):
    """How the model goes on, greedily: a list of texts."""
    prompts = [prompt_of(pair, tokenizer) for pair in pairs]
    made = generate(model, prompts, REWARD["max_new_tokens"], eos_id=tokenizer.end_of_turn)
    return [tokenizer.decode(ids) for ids in made[:, max(map(len, prompts)) :].tolist()]


def measure(model, tokenizer):
    """What a row of the table says of a model; it trained on none of these sums."""
    model.eval()
    some = sums()[1][:DRAWN]
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(0)
    drawn = sample_group(model, tokenizer, [prompt_of(pair, tokenizer) for pair in some], 8, REWARD["max_new_tokens"],
                         stop_id=tokenizer.end_of_turn, generator=generator)  # fmt: skip
    right = [sum(is_right(pair, answer) for answer in drawn.answers[8 * i : 8 * i + 8]) for i, pair in enumerate(some)]
    texts, larger = (greedy(model, tokenizer, sums(numbers)[1]) for numbers in (SMALL, LARGER))
    others = answered(model, tokenizer, QUESTIONS[24:])["texts"]
    return {"texts": texts, "larger": larger, "right_of_eight_drawn": right, "questions": others}


def shown_items(tokenizer, seed):
    """The right answers to the sums that `train_policy` draws from with this seed, in its order."""
    training, order, items = sums()[0], torch.Generator().manual_seed(seed), []
    for _ in range(REWARD["steps"]):
        for i in torch.randperm(len(training), generator=order)[: REWARD["n_prompts"]].tolist():
            asked = prompt_of(training[i], tokenizer)
            ids = [*asked, *tokenizer.encode_ordinary(f" {sum(training[i])}."), tokenizer.end_of_turn]
            items.append((torch.tensor(ids), torch.arange(len(ids)) >= len(asked)))
    return items


def run(base, tokenizer, arm, seed):
    """A row of the table: a copy of `base`, trained."""
    model = copy.deepcopy(base)
    freeze_all_but_last(model, TRAINED_BLOCKS)
    if arm == "reward":
        prompts = [prompt_of(pair, tokenizer) for pair in sums()[0]]
        row = train_for_reward(model, tokenizer, prompts, right_number, REWARD, seed=seed, reference=base,
                               stop_id=tokenizer.end_of_turn)  # fmt: skip
    else:
        items = shown_items(tokenizer, seed)
        row = train_timed(model, DataLoader(items, REWARD["n_prompts"], collate_fn=collate_instructions), **SHOWN,
                          seed=seed, progress=False)  # fmt: skip
    return row | measure(model, tokenizer)


def main(argv=None):
    """`python 05_instruction_finetune/sums_smollm2.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: sums_smollm2.json)")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}; it is at least 1")
    conditions = {"numbers": [SMALL, LARGER], "arms": ARMS, "trained_blocks": TRAINED_BLOCKS}
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
