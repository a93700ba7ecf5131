"""Is SmolLM2-135M-Instruct a judge? Asked about answers of which one is known to be worse; all replies into one file.

    python 05_instruction_finetune/judge_smollm2.py --seeds 3 --bfloat16

Writes judge_smollm2.json beside this file (or --out FILE) after each of its parts, and goes on where it stopped; a
table of another model, other data or another number format is never written over, only answers that changed are. The
test entries are those of lesson 5.1. The good answer is the reference; the worse one is the reference of another
entry, the same words shuffled, or the same answer with one word wrong; a seed decides how. Each pair is asked in both
orders. Last, the answers of the base and of lesson 5.1's assistant are judged in the same ways. Lesson 5.2b draws the
table.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import regex
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from assistant import load_assistant  # noqa: E402

from shared import data  # noqa: E402
from shared.batches import random_split  # noqa: E402
from shared.checkpoints import load_base  # noqa: E402
from shared.files import command_line, continue_table, sha256_of, write_table  # noqa: E402
from shared.instructions import check_entries, respond  # noqa: E402
from shared.judge import BETTER, GRADE, by_grade, by_letter, by_likelihood  # noqa: E402
from shared.runtime import get_device, made_on  # noqa: E402

OUT = Path(__file__).with_name("judge_smollm2.json")
WORD = regex.compile(r"\w+")


def another_entry(i, entries, rng):
    """The reference of another entry."""
    return entries[(i + draw(rng, 1, len(entries))) % len(entries)]["output"]


def shuffled_words(i, entries, rng):
    """The reference with its words in another order, where it has two different ones."""
    words = entries[i]["output"].split()
    while len(set(words)) > 1 and words == entries[i]["output"].split():
        words = [words[k] for k in torch.randperm(len(words), generator=rng).tolist()]
    return " ".join(words)


def wrong_word(i, entries, rng):
    """The reference with its longest word that the question has not, in place of which stands another entry's."""
    answer, (start, end) = entries[i]["output"], longest_word(entries[i])
    other = entries[(i + draw(rng, 1, len(entries))) % len(entries)]
    new = other["output"][slice(*longest_word(other))]
    return f"{answer[:start]}{new}{answer[end:]}"


CORRUPTIONS = {"another entry's answer": another_entry, "its words shuffled": shuffled_words,
               "one word wrong": wrong_word}  # fmt: skip


def draw(rng, low, high):
    return torch.randint(low, high, (), generator=rng).item()


def longest_word(entry):
    """Where the longest word of an answer stands that its question has not; of any, where all are there."""
    asked = {word.casefold() for word in WORD.findall(f"{entry['instruction']} {entry['input']}")}
    places = [match.span() for match in WORD.finditer(entry["output"])] or [(0, len(entry["output"]))]
    new = [(start, end) for start, end in places if entry["output"][start:end].casefold() not in asked]
    return max(new or places, key=lambda place: place[1] - place[0])


def worse_answers(corruption, entries, seed):
    """A worse answer to each entry; the seed decides how it is worse."""
    rng = torch.Generator().manual_seed(seed)
    return [CORRUPTIONS[corruption](i, entries, rng) for i in range(len(entries))]


def letters_of(model, encoding, entries, good, bad):
    """Log-odds of the letter A where the better answer stands first, and where it stands second."""
    triples = list(zip(entries, good, bad, strict=True))
    return {"first": rounded(by_letter(model, encoding, triples)),
            "second": rounded(by_letter(model, encoding, [(entry, b, a) for entry, a, b in triples]))}  # fmt: skip


def alone(model, encoding, entries, answers):
    """What a judge says of single answers: the likeliest grade, the mean one, bits per byte; and their words."""
    asked = list(zip(entries, answers, strict=True))
    grades = by_grade(model, encoding, asked)
    return {"grade": (grades.argmax(dim=1) + 1).tolist(), "mean_grade": rounded(grades @ torch.arange(1.0, 6.0)),
            "bits": rounded(by_likelihood(model, encoding, asked)),
            "words": [len(answer.split()) for answer in answers]}  # fmt: skip


def in_16_bits(model):
    """The model in bfloat16, but for its head, whose logits would be rounded to eighths."""
    model.to(torch.bfloat16)
    model.head.weight = torch.nn.Parameter(model.token_embedding.weight.float())
    model.head.register_forward_pre_hook(lambda head, inputs: (inputs[0].float(),))


def rounded(values):
    return [round(value, 4) for value in values.tolist()]


def pair_key(entry, a, b):
    """Eight characters that tell this pair of answers from others."""
    return hashlib.sha256(json.dumps([entry["instruction"], entry["input"], a, b]).encode()).hexdigest()[:8]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="ways to make answers worse (default: 3)")
    parser.add_argument("--pairs", type=int, metavar="N", help="of the test entries (default: all)")
    parser.add_argument("--bfloat16", action="store_true", help="the judge in 16 bits: faster where the CPU can")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(argv)
    if options.seeds < 0 or options.pairs is not None and options.pairs < 2:
        parser.error(f"--seeds is {options.seeds} (at least 0), --pairs {options.pairs} (at least 2)")
    device = get_device()
    file = data.fetch("instruction_data")
    training, _, all_test = random_split(check_entries(data.load(file))[0])  # as in lesson 5.1
    test = all_test[: options.pairs]
    judge, encoding = load_base("smollm2")
    judge.to(device)
    if options.bfloat16:
        in_16_bits(judge)
    asked = hashlib.sha256((BETTER + GRADE).encode()).hexdigest()[:12]
    made_with = {"judge": encoding.name, "asked": asked, "data": sha256_of(file)[:12], "pairs": len(test),
                 "number_format": str(judge.token_embedding.weight.dtype).removeprefix("torch.")}  # fmt: skip
    table = {"made_with": made_with, "rows": []}
    try:
        table["rows"] = continue_table(options.out, {"made_with": made_with}, rows="rows")
    except ValueError as error:
        parser.error(str(error))
    table |= made_on()
    references = [entry["output"] for entry in test]

    said_of_references = {}

    def judged(worse, seed, good, bad):
        keys = [pair_key(*its) for its in zip(test, good, bad, strict=True)]
        if any((row["worse"], row["seed"], row["pairs"]) == (worse, seed, keys) for row in table["rows"]):
            return
        started = time.perf_counter()
        row = {"worse": worse, "seed": seed, "pairs": keys} | letters_of(judge, encoding, test, good, bad)
        if good is references and not said_of_references:
            said_of_references.update(alone(judge, encoding, test, good))
        row["good"] = said_of_references if good is references else alone(judge, encoding, test, good)
        row["bad"] = alone(judge, encoding, test, bad)
        table["rows"] = [r for r in table["rows"] if (r["worse"], r["seed"]) != (worse, seed)] + [row]
        write_table(options.out, table, "rows")
        turned = sum((a > 0) == (b > 0) for a, b in zip(row["first"], row["second"], strict=True))
        likely = sum(a < b for a, b in zip(row["good"]["bits"], row["bad"]["bits"], strict=True))
        print(f"{worse}, seed {seed}: {turned} of {len(test)} turn with the order, the likelier one is the better one "
              f"in {likely}; {time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip

    for seed in range(options.seeds):
        for worse in CORRUPTIONS:
            judged(worse, seed, references, worse_answers(worse, test, seed))
    base, tokenizer = load_base()
    base.to(device)
    _, its_answers = load_assistant(base, tokenizer, training, all_test, epochs=1, lr=1e-3, new_tokens=50)
    judged("the base's answer", 0, its_answers[: len(test)], respond(base, tokenizer, test, 50))


if __name__ == "__main__":
    command_line(main)
