"""Instructions: `python -m tests.benchmarks.instruct [generate] [train] [--rounds 3] [--clock cpu]`.

generate: answers to 64 entries by the course base, cached and in batches, beside one at a time without a cache and
beside `transformers.generate` on the exported folder, with the same batches (alike in length, padded on the left).
train: a training step on batches of like length with the prompt masked, beside rows padded to one fixed length, in
real tokens (no padding) a second. All variants run in one process, in turn; the table gives medians and, beside each
peer, how many times as fast the course is.
"""

import argparse
import tempfile
import time
from functools import partial

import torch

from shared import data
from shared.batches import random_split
from shared.checkpoints import COURSE_BASE, load_model, save_model
from shared.instructions import (
    InstructionData,
    answer_loss,
    check_entries,
    collate_instructions,
    extract_response,
    format_prompt,
    instruction_loader,
    respond,
)
from shared.runtime import get_device
from shared.training import make_optimizer, training_step
from tests.benchmarks import __main__ as benchmarks

N_ENTRIES, BATCH, NEW_TOKENS = 64, 16, 64
SLOW_SHARE = 8  # of the slowest variant only so many entries are timed: one in eight


def entries_of(name="instruction_data"):
    return random_split(check_entries(data.load(name))[0])


def their_answers(theirs, tokenizer, entries, context):
    """The same batches by transformers: sorted by length, padded on the left, greedy."""
    prompts = [tokenizer.encode_ordinary(format_prompt(entry))[-(context - NEW_TOKENS) :] for entry in entries]
    order, answers = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        longest = max(len(prompts[i]) for i in rows)
        ids = torch.full((len(rows), longest), tokenizer.eot_token)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(rows):
            ids[k, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[k, longest - len(prompts[i]) :] = 1
        ids, mask = ids.to(theirs.device), mask.to(theirs.device)
        output = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        for i, new in zip(rows, output[:, longest:].tolist(), strict=True):
            answers[i] = extract_response(tokenizer.decode(new))
    return answers


def bench_generate(n_rounds, device):
    from transformers import GPT2LMHeadModel

    model, tokenizer = load_model(COURSE_BASE)
    model.to(device)
    entries = entries_of()[2][:N_ENTRIES]
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tokenizer, folder)
        theirs = GPT2LMHeadModel.from_pretrained(folder).to(device).eval()

    by_length = sorted(range(len(entries)), key=lambda i: len(format_prompt(entries[i])))
    some = [entries[i] for i in by_length[SLOW_SHARE // 2 :: SLOW_SHARE]]

    def one_at_a_time():
        return respond(model, tokenizer, some, NEW_TOKENS, batch_size=1, use_cache=False)

    variants = {
        "this course, batches and cache": lambda: respond(model, tokenizer, entries, NEW_TOKENS, batch_size=BATCH),
        "transformers, same batches": lambda: their_answers(theirs, tokenizer, entries, model.config.context_length),
        f"one at a time, no cache (every {SLOW_SHARE}th by length)": one_at_a_time,
    }
    answers = {}

    def keep(name, function):
        answers[name] = function()

    seconds = benchmarks.rounds({name: partial(keep, name, f) for name, f in variants.items()}, n_rounds)
    ours, theirs_said, slow_said = (answers[name] for name in variants)  # they ran in an order drawn by lot
    same = sum(a == b for a, b in zip(ours, theirs_said, strict=True))
    slow_same = sum(ours[entries.index(entry)] == said for entry, said in zip(some, slow_said, strict=True))
    print(f"equal answers: transformers {same} of {len(ours)}, one at a time {slow_same} of {len(some)}")
    return [(f"up to {NEW_TOKENS} tokens for {len(entries)} entries, batch {BATCH}", name, len(answers[name]) / s,
             "answers/s") for name, s in seconds.items()]  # fmt: skip


def bench_train(n_rounds, device):
    tokenizer = load_model(COURSE_BASE)[1]
    items = InstructionData(entries_of()[0][:160], tokenizer, 257)
    lengths = [len(ids) for ids, _ in items]
    longest = max(lengths)

    def fixed_length(batch):  # one more row, which is thrown away, makes each batch as wide as the longest of all
        blank = torch.zeros(longest, dtype=torch.long), torch.ones(longest, dtype=torch.bool)
        return tuple(tensor[:-1] for tensor in collate_instructions([*batch, blank]))

    shuffled = torch.utils.data.DataLoader(items, 8, shuffle=True, collate_fn=fixed_length)
    loaders = {"this course, masks and length buckets": instruction_loader(items, 8),
               f"padded to {longest} tokens": shuffled}  # fmt: skip
    variants = {name: epoch(loader, device) for name, loader in loaders.items()}
    real = sum(lengths) - len(items)
    seconds = benchmarks.rounds(variants, n_rounds)
    return [("training step, batch 8", name, real / s, "real tokens/s") for name, s in seconds.items()]


def epoch(loader, device):
    model = load_model(COURSE_BASE)[0].to(device).train()
    optimizer, scaler = make_optimizer(model, lr=1e-5), torch.amp.GradScaler(device.type, enabled=False)

    def run():
        for batch in loader:
            training_step(model, [batch], answer_loss, optimizer, scaler)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["generate", "train", []], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    clocks = list(benchmarks.CLOCKS)
    parser.add_argument("--clock", choices=clocks, default="wall", help="cpu: for a machine that is not alone")
    args = parser.parse_args()
    device, rows = get_device(), []
    benchmarks.clock = benchmarks.CLOCKS[args.clock]
    torch.manual_seed(0)
    started = time.perf_counter()
    if "generate" in (args.what or ["generate"]):
        rows += bench_generate(args.rounds, device)
    if "train" in (args.what or ["train"]):
        rows += bench_train(args.rounds, device)
    ours = {what: value for what, name, value, _ in rows if name.startswith("this course")}
    print("| measured | variant | value | this course is |\n|---|---|---:|---:|")
    for what, name, value, unit in rows:
        print(f"| {what} | {name} | {value:,.4g} {unit} | {ours[what] / value:.2f}x |")
    took = f"{torch.get_num_threads()} threads, {args.clock} time, {time.perf_counter() - started:.0f} s in all"
    print(f"\n{benchmarks.machine(device)}; {took}")


if __name__ == "__main__":
    main()
