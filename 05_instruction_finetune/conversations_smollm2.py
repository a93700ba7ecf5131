"""Does a model that was trained on one domain's conversations use what was said before? SmolLM2 and the course base.

    python 05_instruction_finetune/conversations_smollm2.py                            # all of it
    python 05_instruction_finetune/conversations_smollm2.py --only search course_base --seeds 3

`course_base`: the airline, as it came and after full fine-tuning, one run for each seed; `help_desk`: the same for the
other domain; `smollm2`: the airline with LoRA; `search`: twelve short runs of the course base with random settings;
`judge`: SmolLM2 says which of two next turns is better, in both orders. Each run is one row of
conversations_smollm2.json beside this file (or --out FILE); the same command goes on where it stopped.

All of it is about the two domains of the course, whose probes plant cities, days and subjects: nobody can write probes
for chats that they have not read. A model of your own chats is trained and measured by lesson 5.6, without probes.
"""

import argparse
import math
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import domains  # noqa: E402
from runs import check_base, train_timed  # noqa: E402

from shared import data  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base  # noqa: E402
from shared.conversations import CHATML, COURSE, ConversationData, check_masks  # noqa: E402
from shared.files import command_line, continue_table, sha256_of, write_table  # noqa: E402
from shared.instructions import instruction_loader  # noqa: E402
from shared.judge import by_letter  # noqa: E402
from shared.lora import apply_lora, merge_lora  # noqa: E402
from shared.runtime import get_device, made_on, seed_everything  # noqa: E402

OUT = Path(__file__).with_name("conversations_smollm2.json")
SETTINGS = {  # rank None: all weights train
    "course_base": {"lr": 1e-3, "epochs": 4, "batch_size": 4, "weight_decay": 0.1, "rank": None, "max_tokens": 512},
    "smollm2": {"lr": 1e-3, "epochs": 2, "batch_size": 4, "weight_decay": 0.1, "rank": 16, "max_tokens": 512},
}
JOBS = {"course_base": ("course_base", "airline"), "help_desk": ("course_base", "help_desk"),
        "smollm2": ("smollm2", "airline"), "search": None, "judge": None}  # fmt: skip
N_JUDGED = 60


def load(name):
    """(model, tokenizer, its chat template) of "smollm2" or "course_base"."""
    model, tokenizer = load_base("smollm2" if name == "smollm2" else COURSE_BASE)
    return model.to(get_device()), tokenizer, CHATML if name == "smollm2" else COURSE


def fine_tune(model, tokenizer, template, training, settings, seed):
    """Train on what the assistant says, all weights or adapters of `rank`; returns what the table says of it."""
    items = ConversationData(training, tokenizer, settings["max_tokens"], template)
    check_masks(items, tokenizer, template)
    if settings["rank"]:
        apply_lora(model, settings["rank"], 2 * settings["rank"])
    loader = instruction_loader(items, settings["batch_size"], seed=seed)
    found = train_timed(model, loader, lr=settings["lr"], epochs=settings["epochs"], seed=seed,
                        weight_decay=settings["weight_decay"], warmup_steps=len(loader) // 5)  # fmt: skip
    if settings["rank"]:
        merge_lora(model)
    return found | {"items": len(items), "shortened": len(items.shortened), "left_out": len(items.left_out)}


def random_settings(n):
    """Settings of `n` short runs of the course base: the rate and the batch matter most, so they are drawn widest."""
    rng = random.Random(56)
    return [SETTINGS["course_base"] | {
        "lr": round(10 ** rng.uniform(-4, -2.3), 6), "batch_size": rng.choice([2, 4, 8, 16]), "epochs": 1,
        "weight_decay": rng.choice([0.0, 0.1, 0.3])} for _ in range(n)]  # fmt: skip


def judged(n=N_JUDGED):
    """What SmolLM2 says of pairs (true next turn, a stranger): log-odds of the letter A in both orders."""
    model, tokenizer, _ = load("smollm2")
    triples = domains.next_turns(domains.parts("airline")[2])[:n]
    entries = [{"instruction": "Continue this conversation with the assistant's next turn.", "output": true,
                "input": "\n".join(f"{turn['role']}: {turn['content']}" for turn in context)}
               for context, true, _ in triples]  # fmt: skip
    asked = list(zip(entries, (true for _, true, _ in triples), (other for _, _, other in triples), strict=True))
    first = by_letter(model, tokenizer, asked).tolist()
    second = by_letter(model, tokenizer, [(entry, b, a) for entry, a, b in asked]).tolist()
    right = [str(odds > 0) for odds in first] + [str(odds < 0) for odds in second]
    says_a = [str(odds > 0) for odds in first + second]
    both = [str(a > 0 > b) for a, b in zip(first, second, strict=True)]
    return {"base": tokenizer.name, "n_pairs": len(asked), "right": domains.share(right, "True"),
            "says_a": domains.share(says_a, "True"), "right_in_both_orders": domains.share(both, "True"),
            "first": [round(odds, 3) for odds in first],
            "second": [round(odds, 3) for odds in second]}  # fmt: skip


def plan(only, seeds, n_search):
    """The rows to be made: dicts that name a run, its settings included."""
    rows = []
    for name in only:
        if name == "search":
            rows += [{"job": "search", "model": "course_base", "domain": "airline", "seed": 0, "settings": settings}
                     for settings in random_settings(n_search)]  # fmt: skip
        elif name == "judge":
            rows.append({"job": "judge", "model": "smollm2", "domain": "airline", "seed": None, "settings": None})
        else:
            model, domain = JOBS[name]
            rows += [{"job": name, "model": model, "domain": domain, "seed": seed,
                      "settings": None if seed is None else SETTINGS[model]} for seed in (None, *range(seeds[name]))]
    return rows  # fmt: skip


def make(row, asked):
    """Run what a row names; returns what it found."""
    if row["job"] == "judge":
        return judged()
    model, tokenizer, template = load(row["model"])
    training, validation, test = domains.parts(row["domain"])
    found = {"base": tokenizer.name}
    if row["seed"] is not None:
        seed_everything(row["seed"])
        found |= fine_tune(model, tokenizer, template, training, row["settings"], row["seed"])
    if row["job"] == "search":
        score = domains.bits(model, tokenizer, template, validation)
        return found | {"validation_bits": round(score.bits_per_byte, 4), "validation_interval": [
            round(end, 4) for end in score.bits_per_byte_interval]}  # fmt: skip
    return found | domains.measure(model, tokenizer, template, test, asked)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*JOBS], default=[*JOBS], metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--seeds", type=int, help="runs of each job (default: 3 of course_base, 1 of the others)")
    parser.add_argument("--search", type=int, default=12, metavar="N", help="runs of the search (default 12)")
    parser.add_argument("--pairs", type=int, default=12, metavar="N", help="pairs of values of each kind of probe")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: conversations_smollm2.json)")
    args = parser.parse_args(argv)
    if not 1 <= args.pairs <= 12 or args.search < 1 or args.seeds is not None and args.seeds < 0:
        parser.error(f"--pairs is {args.pairs} (1 to 12), --search {args.search} (at least 1), --seeds {args.seeds} "
                     "(at least 0)")  # fmt: skip
    seeds = {name: (3 if name == "course_base" else 1) if args.seeds is None else args.seeds for name in JOBS}
    asked = [probe for domain in domains.KINDS for probe in domains.probes(domain, args.pairs)]
    made_of = {domain: sha256_of(data.places.SAMPLES / f"{domain}.jsonl")[:12] for domain in domains.KINDS}
    table = {"data": made_of, "n_probes": len(asked), "runs": []}
    try:
        table["runs"] = continue_table(args.out, {"data": made_of, "n_probes": len(asked)})
    except ValueError as error:
        parser.error(str(error))
    heads = plan(args.only, seeds, args.search)
    made = [run for run in table["runs"] if run["model"] == "smollm2"]
    if made and any(head["model"] == "smollm2" for head in heads):
        check_base(parser, args.out, made, load("smollm2")[1].name)
    for head in heads:
        if any(head.items() <= run.items() for run in table["runs"]):
            continue
        started = time.perf_counter()
        row = head | made_on()
        row |= make(head, asked)
        row["seconds"] = round(time.perf_counter() - started, 1)
        table["runs"].append(row)
        write_table(args.out, table)
        names = ("probes", "twins", "bits_per_byte", "validation_bits", "right")
        told = {name: row[name] for name in names if name in row}
        print(f"{head['job']}, seed {head['seed']}, {row['seconds']:.0f} s: {told}", flush=True)
        if not all(math.isfinite(value) for value in row.values() if isinstance(value, float)):
            raise SystemExit("a figure is not finite")
    return 0


if __name__ == "__main__":
    command_line(main)
