"""What does fine-tuning on instructions teach: the form of answers, or what is in them? SmolLM2 and the course base.

    python 05_instruction_finetune/instruct_smollm2.py                                     # one seed of SmolLM2
    python 05_instruction_finetune/instruct_smollm2.py --model course_base --seeds 3

Each model answers the test items of families.py and the first ten test entries of lesson 5.1, as it came and after
training on the training part of both. Writes instruct_smollm2.json beside this file (or --out FILE) after each run; the
same command goes on where it stopped, inside a run too (its state lies in the data folder until it is done). A seed
decides the order of the batches. SmolLM2 is asked in its own form, ChatML; the course base in Alpaca's.
"""

import argparse
import copy
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import families  # noqa: E402
from runs import encoded, sha_of, train_timed  # noqa: E402

from shared import data  # noqa: E402
from shared.batches import random_split  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base  # noqa: E402
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.generation import generate  # noqa: E402
from shared.gpt import count_parameters  # noqa: E402
from shared.instructions import check_entries, encode_entry, instruction_loader  # noqa: E402
from shared.runtime import autocast_dtype, get_device, made_on, seed_everything  # noqa: E402

OUT = Path(__file__).with_name("instruct_smollm2.json")
# passes: how often the narrow items are read; the entries of the data set are read once
SETTINGS = {
    "smollm2": {"lr": 3e-5, "passes": 1, "batch_size": 8, "max_tokens": 256, "new_tokens": 50},
    "course_base": {"lr": 1e-3, "passes": 1, "batch_size": 8, "max_tokens": 256, "new_tokens": 50},
}
NARROW_TOKENS = 40  # of an answer to a narrow item at most: twice what an expected one has, for chatty models


def encode_chat(entry, tokenizer):
    """(ids of the prompt, ids of the answer and <|im_end|>) in ChatML, the marks as the single tokens that they are."""
    start, end = tokenizer.encode_single_token("<|im_start|>"), tokenizer.end_of_turn
    newline, said = tokenizer.encode_ordinary("\n"), "\n\n".join(filter(None, (entry["instruction"], entry["input"])))
    prompt = [start, *tokenizer.encode_ordinary(f"user\n{said}"), end, *newline, start,
              *tokenizer.encode_ordinary("assistant\n")]  # fmt: skip
    return prompt, [*tokenizer.encode_ordinary(entry["output"]), end]


def answers_of(model, tokenizer, entries, encode, new_tokens, batch_size=16):
    """Greedy answers to the entries, in their order; in bfloat16 where training is."""
    model = copy.deepcopy(model).to(autocast_dtype(model.token_embedding.weight.device) or torch.float32)
    prompts, end = [encode(entry, tokenizer)[0] for entry in entries], encode(entries[0], tokenizer)[1][-1]
    order, answers = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        longest = max(len(prompts[i]) for i in rows)
        made = generate(model, [prompts[i] for i in rows], new_tokens, eos_id=end, n_vocab=tokenizer.n_vocab)
        for i, new in zip(rows, made[:, longest:].tolist(), strict=True):
            new = new[: new.index(end)] if end in new else new
            answers[i] = tokenizer.decode(new).partition("### Instruction")[0].strip()
    return answers


def measure(model, tokenizer, encode, narrow, ten, settings):
    """What a run's row of the table holds: counts for each family, and the answers."""
    started = time.perf_counter()
    answers = answers_of(model, tokenizer, narrow, encode, NARROW_TOKENS)
    ten_answers = answers_of(model, tokenizer, ten, encode, settings["new_tokens"])
    return {"families": families.score(narrow, answers), "answer_seconds": round(time.perf_counter() - started, 1),
            "ten": ten_answers, "narrow": answers}  # fmt: skip


def fine_tune(model, tokenizer, encode, entries, seed, settings, state):
    """Train all weights on the answers of the entries, in an order that `seed` fixes; resumes from the file `state`."""
    items = encoded(entries, tokenizer, encode, settings["max_tokens"])
    loader = instruction_loader(items, settings["batch_size"], seed=seed)
    return {"items": len(items)} | train_timed(
        model, loader, lr=settings["lr"], warmup_steps=len(loader) // 10, eval_every=-(-len(loader) // 5), seed=seed,
        checkpoint=state, resume=state.is_file())  # fmt: skip


def parts(n_entries):
    """(training entries, training items, test items, ten test entries, what the table says of the last two)."""
    file = data.fetch("instruction_data")
    training, _, test = random_split(check_entries(data.load(file))[0])
    narrow_training, narrow = families.items()
    training = families.without(training, narrow)[:n_entries]
    if n_entries:  # of each family some
        narrow_training, narrow = (whole[:: max(1, len(whole) // n_entries)] for whole in (narrow_training, narrow))
    ten = test[:10]
    about = {"file": Path(file).name, "bundled_sample": data.places.is_sample(file), "sha256": sha_of([narrow, ten])}
    return training, narrow_training, narrow, ten, about


def main(argv=None):
    """`python 05_instruction_finetune/instruct_smollm2.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SETTINGS], default="smollm2")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tuning runs (default 1)")
    parser.add_argument("--entries", type=int, help="only so many entries and items of each kind, for a trial")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: instruct_smollm2.json)")
    args = parser.parse_args(argv)
    if args.seeds < 0 or args.entries is not None and args.entries < 1:
        parser.error(f"--seeds is {args.seeds} (at least 0), --entries {args.entries} (at least 1)")
    training, narrow_training, narrow, ten, about = parts(args.entries)
    settings, encode = SETTINGS[args.model], encode_chat if args.model == "smollm2" else encode_entry
    table = {"data": about, "ten": [{k: one[k] for k in ("instruction", "input")} for one in ten], "runs": []}
    try:
        table["runs"] = continue_table(args.out, {"data": about})
    except ValueError as error:
        parser.error(str(error))
    if table["runs"]:
        print(f"{args.out.name} has {len(table['runs'])} runs: going on")
    for seed in (*range(args.seeds), None):
        model, tokenizer = load_base("smollm2" if args.model == "smollm2" else COURSE_BASE)
        model.to(get_device())
        head = {"model": args.model, "seed": seed, "base": tokenizer.name, "parameters": count_parameters(model)}
        if seed is not None:
            head |= {"settings": settings, "training": sha_of([training, narrow_training])}
        if any(head.items() <= run.items() for run in table["runs"]):
            continue
        if any((run["model"], run["seed"]) == (args.model, seed) for run in table["runs"]):
            parser.error(f"{args.out} has this run of another base, or other settings: name another file with --out")
        row = head | made_on()
        state = data.places.data_dir() / f"{tokenizer.name}-instruct-{sha_of(head)[:8]}.run"
        if seed is not None:
            seed_everything(seed)
            row |= fine_tune(model, tokenizer, encode, training + settings["passes"] * narrow_training, seed, settings,
                             state)  # fmt: skip
        row |= measure(model, tokenizer, encode, narrow, ten, settings)
        table["runs"].append(row)
        write_table(args.out, table)
        state.unlink(missing_ok=True)
        told = "  ".join(f"{name} {c['exact']}/{c['n']}" for name, c in row["families"].items())
        print(f"{args.model}, {'as it came' if seed is None else f'seed {seed}'}: {told}", flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
