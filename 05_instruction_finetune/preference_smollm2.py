"""What does preference tuning change, and when does it ruin the text? The course's assistant and SmolLM2.

    python 05_instruction_finetune/preference_smollm2.py                    # the course base: six arms, three seeds
    python 05_instruction_finetune/preference_smollm2.py --model smollm2    # SmolLM2: four arms, three seeds

Each arm starts from one model, is trained on pairs of a polite and a less polite answer, and answers held-out prompts.
Writes preference_smollm2.json beside this file (or --out FILE) after each run; the same command goes on where it
stopped. A seed decides which pairs are read and in which order. The course base is first taught to answer (a short
form of lesson 5.1); of SmolLM2 only the last blocks are trained.
"""

import argparse
import copy
import re
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from instruct_smollm2 import answers_of, encode_chat  # noqa: E402
from runs import check_base, encoded, finished, sha_of  # noqa: E402

from shared import data  # noqa: E402
from shared.batches import random_split  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base  # noqa: E402
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.instructions import InstructionData, Template, answer_loss, encode_entry, instruction_loader  # noqa: E402
from shared.loss import IGNORE, mixed_precision  # noqa: E402
from shared.preference import (  # noqa: E402
    PreferenceData,
    RewardModel,
    check_pairs,
    collate_pairs,
    pair_log_probs,
    rewards,
    sequence_log_probs,
    train_dpo,
    train_reward,
    win_share,
)
from shared.runtime import evaluating, get_device, made_on, seed_everything  # noqa: E402
from shared.training import train  # noqa: E402

OUT = Path(__file__).with_name("preference_smollm2.json")
# A prompt of few tokens, so that a lesson trains in seconds: Alpaca's would be half of each row.
FORM = Template("Question: {instruction}\nAnswer:\n", "Question: {instruction}\n{input}\nAnswer:\n", answer="Answer:\n")
MAX_TOKENS = 160
SHARES = (0.8, 0.2)  # of the pairs: training, held out
COMMON = {"beta": 0.1, "batch_size": 8}
ARMS = {
    "course_base": {
        "small steps": {"lr": 2e-4},
        "large steps": {"lr": 1e-3},
        "large steps + NLL": {"lr": 1e-3, "nll": 1.0},
        "large steps, smoothed": {"lr": 1e-3, "label_smoothing": 0.1},
        "large steps, IPO": {"lr": 1e-3, "kind": "ipo", "beta": 1.0},  # per token, half a nat is asked for
        "NLL alone": {"lr": 1e-3, "nll": 1.0, "beta": 1e-6},  # the control: DPO's own part vanishes
    },
    "smollm2": {
        "small steps": {"lr": 1e-4},
        "large steps": {"lr": 1e-3},
        "large steps + NLL": {"lr": 1e-3, "nll": 1.0},
        "NLL alone": {"lr": 1e-3, "nll": 1.0, "beta": 1e-6},
    },
}
PAIRS = {"course_base": 160, "smollm2": 100}  # that a run trains on
PROMPTS = {"course_base": 80, "smollm2": 40}  # that it answers, of the held-out ones
NEW_TOKENS = 32
JUDGE_PAIRS = 400  # that the reward model is trained on
BLOCKS = 4  # of SmolLM2's 30: the last ones are trained, the rest stays

POLITE = ("happy to", "glad", "please", "kindly", "may i", "i would", "i'd ", "suggest", "certainly", "indeed",
          "thank", "pleasure", "help", "welcome", "perhaps", "would be", "of course")  # fmt: skip
RUDE = ("obvious", "duh", "stupid", "freak", "damn", "ridiculous", "get it", "look,", "yourself", "anyway", "next time",
        "okay?", "basically", "straight", "fool", "lazy", "genius", "come on", "seriously", "already")  # fmt: skip


def manners(text):
    """1 for a text with a polite phrase and no rude one, -1 for a rude one, else 0: a rule that reads no grammar."""
    text = text.casefold()
    polite, rude = (any(phrase in text for phrase in phrases) for phrases in (POLITE, RUDE))
    return -1 if rude else int(polite)


def loops(text):
    """Whether a text says the same three words again."""
    words = re.findall(r"\w+", text.casefold())
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(grams)) < len(grams)


def parts():
    """(training pairs, held-out pairs, where they come from)."""
    file = data.fetch("preference_data")
    training, held_out = random_split(check_pairs(data.load(file))[0], SHARES)
    return training, held_out, file


def course_encode(entry, tokenizer):
    """`encode_entry` in this lesson's short form."""
    return encode_entry(entry, tokenizer, FORM)


def make_assistant(base, tokenizer, training, **settings):
    """A copy of `base` that was taught to answer, on the plain `output` of each training pair."""
    model = copy.deepcopy(base)
    loader = instruction_loader(InstructionData(training, tokenizer, MAX_TOKENS, FORM), 8)
    warmup = max(1, len(loader) // 10)
    finished(train(model, loader, loss_fn=answer_loss, lr=1e-3, warmup_steps=warmup, **settings))
    return model


def make_judge(base, tokenizer, training, **settings):
    """A reward model on a copy of `base`, trained on the first of the training pairs."""
    judge = RewardModel(copy.deepcopy(base))
    pairs = PreferenceData(training[:JUDGE_PAIRS], tokenizer, MAX_TOKENS, course_encode)
    finished(train_reward(judge, pairs, lr=1e-3, warmup_steps=max(1, len(pairs) // 80), **settings))
    return judge


def scores(judge, tokenizer, entries, answers):
    """The reward model's numbers [N] for answers, in this lesson's form."""
    rows = [sum(course_encode(entry | {"output": answer}, tokenizer), [])[:MAX_TOKENS]
            for entry, answer in zip(entries, answers, strict=True)]  # fmt: skip
    return rewards(judge, rows)


def bits_per_byte(model, tokenizer, entries, answers, encode):
    """Bits per byte [N] of answers, their end included, under `model`: how natural it finds them."""
    answered = [entry | {"output": answer} for entry, answer in zip(entries, answers, strict=True)]
    items, found = encoded(answered, tokenizer, encode), []
    device = next(model.parameters()).device
    with evaluating(model), mixed_precision(device):
        for first in range(0, len(items), 8):
            batch = items[first : first + 8]
            inputs, targets = (x.to(device) for x in collate_pairs([(item, item) for item in batch]))
            half = len(batch)
            assert (targets[:half] != IGNORE).any(dim=1).all()
            found.append(-sequence_log_probs(model, inputs[:half], targets[:half]).cpu())
    sizes = torch.tensor([max(1, len(answer.encode("utf-8"))) for answer in answers])
    return torch.cat(found) / sizes / torch.log(torch.tensor(2.0))


def measure(model, tokenizer, encode, held_out, pairs, before, reference, judge):
    """What a row of the table holds: numbers of each held-out pair and prompt, and ten answers."""
    start = time.perf_counter()
    change = pair_log_probs(model, pairs) - before
    answers = answers_of(model, tokenizer, held_out, encode, NEW_TOKENS)
    numbers = {
        "margins": COMMON["beta"] * (change[:, 0] - change[:, 1]), "chosen": change[:, 0], "rejected": change[:, 1],
        "reward": scores(*judge, held_out, answers),
        "bits": bits_per_byte(reference, tokenizer, held_out, answers, encode),
    }  # fmt: skip
    return {name: [round(value, 3) for value in values.tolist()] for name, values in numbers.items()} | {
        "manners": [manners(answer) for answer in answers], "words": [len(answer.split()) for answer in answers],
        "loops": [int(loops(answer)) for answer in answers], "ten": answers[:10],
        "measure_seconds": round(time.perf_counter() - start, 1)}  # fmt: skip


def freeze_all_but_last(model, blocks):
    """Only the last `blocks` blocks of a model go on learning."""
    model.requires_grad_(False)
    for block in model.blocks[-blocks:]:
        block.requires_grad_(True)


def main(argv=None):
    """`python 05_instruction_finetune/preference_smollm2.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*ARMS], default="course_base")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (default 3)")
    parser.add_argument("--only", metavar="ARM", help="only this arm")
    parser.add_argument("--pairs", type=int, help="only so many pairs and prompts, for a trial")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: preference_smollm2.json)")
    args = parser.parse_args(argv)
    arms = ARMS[args.model]
    if args.seeds < 1 or args.pairs is not None and args.pairs < 1:
        parser.error(f"--seeds is {args.seeds} (at least 1), --pairs {args.pairs} (at least 1)")
    if args.only and args.only not in arms:
        parser.error(f"--only is {args.only!r}; the arms of {args.model} are {', '.join(arms)}")
    training, held_out, file = parts()
    about = {"file": Path(file).name, "bundled_sample": data.places.is_sample(file),
             "sha256": sha_of([training, held_out]), "trial": args.pairs}  # fmt: skip
    try:
        rows = continue_table(args.out, {"data": about})
    except ValueError as error:
        parser.error(str(error))
    n_pairs = min(args.pairs or 10**9, PAIRS[args.model], len(training) - 1)  # the bundled sample is small
    n_prompts = min(args.pairs or 10**9, PROMPTS[args.model], len(held_out))
    runs = [(None, None, {}), *((arm, seed, COMMON | chosen) for seed in range(args.seeds)
                                for arm, chosen in arms.items() if args.only in (None, arm))]  # fmt: skip
    heads = [{"model": args.model, "arm": arm, "seed": seed, "settings": settings, "pairs": n_pairs}
             for arm, seed, settings in runs]  # fmt: skip
    for head in heads:
        same = [row for row in rows if all(row[key] == head[key] for key in ("model", "arm", "seed"))]
        if same and not head.items() <= same[0].items():
            parser.error(f"{args.out} has {head['arm']}, seed {head['seed']}, with other settings: name another --out")
    left = [head for head in heads if not any(head.items() <= row.items() for row in rows)]
    if not left:
        print(f"{args.out.name} is whole")
        return 0
    print(f"{len(left)} of {len(heads)} runs are left", flush=True)
    device, few = get_device(), training[: args.pairs]
    base, its_tokenizer = load_base(COURSE_BASE)
    base.to(device)
    seed_everything(0)
    judge = make_judge(base, its_tokenizer, few, progress=False), its_tokenizer
    if args.model == "course_base":
        tokenizer, encode = its_tokenizer, course_encode
        reference = make_assistant(base, tokenizer, few, progress=False)
    else:
        (reference, tokenizer), encode = load_base("smollm2"), encode_chat
        reference.to(device)
    check_base(parser, args.out, [row for row in rows if row["model"] == args.model], tokenizer.name)
    prompts = held_out[:n_prompts]
    pairs = PreferenceData(prompts, tokenizer, 10**6, encode)
    before, drawn = pair_log_probs(reference, pairs), {}
    for head in left:
        start = time.perf_counter()
        model = copy.deepcopy(reference)
        row = head | {"base": tokenizer.name} | made_on()
        if head["seed"] is not None:
            if head["seed"] not in drawn:
                some = random_split(training, (n_pairs, len(training) - n_pairs), seed=head["seed"])[0]
                some = PreferenceData(some, tokenizer, 2 * MAX_TOKENS, encode)
                drawn = {head["seed"]: (some, pair_log_probs(reference, some))}  # for all arms of this seed
            if args.model == "smollm2":
                freeze_all_but_last(model, BLOCKS)
            finished(train_dpo(model, *drawn[head["seed"]], **head["settings"], seed=head["seed"], warmup_steps=5,
                               progress=False))  # fmt: skip
        row |= {"train_seconds": round(time.perf_counter() - start, 1)}
        row |= measure(model, tokenizer, encode, prompts, pairs, before, reference, judge)
        rows.append(row)
        shown = [{k: pair[k] for k in ("instruction", "input")} for pair in held_out[:10]]  # those of "ten"
        write_table(args.out, {"data": about, "prompts": shown, "runs": rows})
        print(f"{head['arm'] or 'before'}, seed {head['seed']}: margins right {win_share(row['margins']):.2f}, chosen "
              f"{sum(row['chosen']) / len(row['chosen']):+.1f}, polite {sum(row['manners'])}, loops "
              f"{sum(row['loops'])} of {len(prompts)} ({row['train_seconds']} + {row['measure_seconds']} s)",
              flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    command_line(main)
