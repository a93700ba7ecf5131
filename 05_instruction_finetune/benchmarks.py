"""What do the course's models and SmolLM2 know? Five benchmarks, on up to a thousand items each, into one file.

    python 05_instruction_finetune/benchmarks.py                # the course base, its assistant, SmolLM2
    python 05_instruction_finetune/benchmarks.py data/my_gpt    # a model of your own, into the same file
    python 05_instruction_finetune/benchmarks.py --check        # our scores beside those of transformers

Writes benchmarks.json beside this file (or --out FILE) after each benchmark of each model; the same command goes on
where it stopped. A row is made anew where the model's weights or the items have changed. The items are drawn with one
seed for all models, so that their differences are paired; of BLiMP they are the first twenty pairs of each of its 67
paradigms. Needs no training; SmolLM2 is read in bfloat16 where the CPU multiplies it, the small models in float32.
Lesson 5.2 draws the table.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from shared import data  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base, save_model  # noqa: E402
from shared.choices import by_every_rule, last_words, minimal_pairs  # noqa: E402
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.gpt import count_parameters  # noqa: E402
from shared.runtime import get_device, made_on  # noqa: E402

OUT = Path(__file__).with_name("benchmarks.json")
BENCHMARKS = {"BLiMP": "blimp", "HellaSwag": "hellaswag", "PIQA": "piqa", "ARC-Easy": "arc_easy", "LAMBADA": "lambada"}
CARD = {"HellaSwag": 0.409, "PIQA": 0.663}  # SmolLM2-135M-Instruct on its model card, zero-shot (Allal et al. 2025)


@dataclass(frozen=True)
class Model:
    """A model to be measured, and what a row says about it."""

    model: torch.nn.Module
    tokenizer: object
    name: str
    parameters: int
    weights: str  # a checksum


def load(path):
    """The `Model` in a folder, or "smollm2", on the device, in float32: 16 bits would round the logits to eighths."""
    model, tokenizer = load_base(path)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    name = tokenizer.name if path == "smollm2" else Path(path).name
    model = model.to(get_device(), torch.float32).eval()
    return Model(model, tokenizer, name, count_parameters(model), digest.hexdigest()[:16])


def default_models():
    """The course base, the assistant that lesson 5.1 saved, if it is there, and SmolLM2, if its file can be had."""
    assistant = data.places.data_dir() / "course_base-assistant"
    models = [COURSE_BASE] + [assistant] * assistant.is_dir()
    return models + ["smollm2"] * (not data.places.is_sample(data.fetch("smollm2")))


def draw(name, n):
    """(n items of a benchmark, or all; the file they are from): drawn at random; of BLiMP's paradigms equally many."""
    file = data.fetch(BENCHMARKS[name])
    items = data.load(file)
    if name == "BLiMP":
        return items[: max(1, n // 50) * len({pair["paradigm"] for pair in items})], file
    return random.Random(0).sample(items, min(n, len(items))), file


def measure(one, name, items):
    """The row of one benchmark: how many of n were right by each rule, and what belongs to this benchmark only."""
    if name == "BLiMP":
        found = minimal_pairs(one.model, one.tokenizer, items)
        by, more = {"sum": found.pop("all")}, {}
        more["phenomena"] = {term: [int(c.right.sum()), len(c.right)] for term, c in sorted(found.items())}
        answers = by["sum"]
    elif name == "LAMBADA":
        answers, surprise = last_words(one.model, one.tokenizer, items)
        by, more = {"greedy": answers}, {"bits_per_byte": round(surprise.bits_per_byte, 4)}
        more["bits_per_byte_interval"] = [round(end, 4) for end in surprise.bits_per_byte_interval]
    else:
        by, more = by_every_rule(one.model, one.tokenizer, items), {}
        answers = by["byte"]
    return {"n": len(items), "chance": round(answers.chance, 4), "cut": answers.cut,
            "right": {rule: int(c.right.sum()) for rule, c in by.items()}} | more | {
            "answers": "".join(str(int(right)) for right in answers.right)}  # fmt: skip


def run(models, n, out, only, again):
    """Measure what is not yet in the table `out`, and write it after each benchmark. With `again`, rows of a model of
    the same name but other weights or items are replaced; without it they are a ValueError."""
    runs = continue_table(out, {"card": CARD})
    table = {"card": CARD, "runs": runs}
    for path in models:
        one = None
        for name in BENCHMARKS:
            if only and only.casefold() not in name.casefold():
                continue
            items, file = draw(name, n)
            one = one or load(path)
            row = {"model": one.name, "benchmark": name, "parameters": one.parameters, "weights": one.weights,
                   "file": Path(file).name, "bundled_sample": data.places.is_sample(file),
                   "items": hashlib.sha256(json.dumps(items).encode("utf-8")).hexdigest()[:16]}  # fmt: skip
            if any(row.items() <= old.items() for old in runs):
                continue
            if not again and any((old["model"], old["benchmark"]) == (one.name, name) for old in runs):
                found = f"{out} has {name} of another {one.name}, or of other items"
                raise ValueError(f"{found}: --again replaces the row, --out FILE leaves it")
            started = time.perf_counter()
            row |= made_on() | measure(one, name, items)
            row["seconds"] = round(time.perf_counter() - started, 1)
            runs[:] = [old for old in runs if (old["model"], old["benchmark"]) != (one.name, name)] + [row]
            write_table(out, table)
            print(f"{one.name:28} {name:10} n {row['n']:5}  {row['right']}  {row['seconds']:.0f} s", flush=True)


def check(path, n=50):
    """Are we right where transformers is? {ARC-Easy by sum, by byte, LAMBADA: (how many answers are equal, of all)}

    The model is saved as a Hugging Face folder, in float32, and read with transformers, weights, tokenizer and all;
    its side scores one text at a time, from the logits of the whole text.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = load_base(path)
    start = tokenizer.eot_token
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tokenizer, folder)
        theirs, encode = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def ids_of(text):
        return encode(text, add_special_tokens=False).input_ids

    @torch.no_grad()
    def likelihood(query, choice):
        row, k = torch.tensor([[start, *ids_of(query), *ids_of(" " + choice)]]), len(ids_of(" " + choice))
        scores = theirs(row).logits[0, :-1].float().log_softmax(dim=-1)
        return scores.gather(1, row[0, 1:, None])[-k:].sum().item()

    items = draw("ARC-Easy", n)[0]
    scores = [[likelihood(item["query"], choice) for choice in item["choices"]] for item in items]
    equal, ours = {}, by_every_rule(model, tokenizer, items)
    for rule, size in (("sum", lambda choice: 1), ("byte", lambda choice: len(f" {choice}".encode()))):
        picked = []
        for item, its in zip(items, scores, strict=True):
            values = [score / size(choice) for score, choice in zip(its, item["choices"], strict=True)]
            picked.append(values.index(max(values)) == item["gold"])
        same = [a == b for a, b in zip(picked, ours[rule].right.tolist(), strict=True)]
        equal[f"ARC-Easy by {rule}"] = sum(same), len(same)
    passages, right = draw("LAMBADA", n)[0], []
    for before, _, word in (text.rpartition(" ") for text in passages):
        row = torch.tensor([[start, *ids_of(before)]])
        new = theirs.generate(row, attention_mask=torch.ones_like(row), do_sample=False, pad_token_id=start,
                              max_new_tokens=len(ids_of(" " + word)))[0, row.shape[1] :]  # fmt: skip
        right.append(new.tolist() == ids_of(" " + word))
    ours = last_words(model, tokenizer, passages)[0].right.tolist()
    return equal | {"LAMBADA": (sum(a == b for a, b in zip(ours, right, strict=True)), len(right))}


def main(argv=None):
    """`python 05_instruction_finetune/benchmarks.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders in Hugging Face's layout, or smollm2")
    parser.add_argument("--items", type=int, default=1000, help="at most so many of each benchmark (default 1000)")
    parser.add_argument("--only", help="benchmarks whose name contains this")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: benchmarks.json, here)")
    parser.add_argument("--again", action="store_true", help="replace the rows of a model that has changed")
    parser.add_argument("--check", action="store_true", help="compare 50 items each with transformers, and end")
    args = parser.parse_args(argv)
    try:
        if args.check:
            for path in args.models or ["smollm2"]:
                equal = check(path)
                shown = ", ".join(f"{name} {same} of {n}" for name, (same, n) in equal.items())
                print(f"{path}, equal to transformers: {shown}")
                if any(a != n for a, n in equal.values()):
                    return 1
        else:
            if args.items < 1:
                raise ValueError(f"--items is {args.items}; it must be at least 1")
            run(args.models or default_models(), args.items, args.out, args.only, args.again)
    except (ValueError, OSError, FloatingPointError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    command_line(main)
