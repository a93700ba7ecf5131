"""Full fine-tuning, LoRA and QLoRA on SmolLM2 (and the small course base): quality, time of a step, memory.

    python 05_instruction_finetune/lora_smollm2.py                       # all of it, less than half an hour on a CPU
    python 05_instruction_finetune/lora_smollm2.py --only families --seeds 1
    LLM_SCALE=full python 05_instruction_finetune/lora_smollm2.py --only alpaca    # all 52,002 entries

Four tasks. families: 300 narrow items of families.py are read once, 141 with unseen words are answered, as exact as the
expected answer. cost: a training step of each method, in turns, and the peak memory of a process that does nothing
else. spam: lesson 4.1's classifier on the course base. alpaca: the loss on 100 held-out entries of Stanford Alpaca
before and after one pass over others. Writes lora_smollm2.json beside this file (or --out FILE) after each run; the
same command goes on where it stopped. A seed decides the order of the batches and where the adapters begin.
"""

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import families  # noqa: E402
from instruct_smollm2 import NARROW_TOKENS, answers_of, encode_chat  # noqa: E402
from runs import check_base, encoded, finished, sha_of, train_timed  # noqa: E402

from shared import data  # noqa: E402
from shared.batches import random_split  # noqa: E402
from shared.checkpoints import COURSE_BASE, load_base  # noqa: E402
from shared.classification import (  # noqa: E402
    LABELS,
    SpamClassifier,
    class_weights,
    deduplicate,
    parse_messages,
    split,
    train_classifier,
)
from shared.files import command_line, continue_table, write_table  # noqa: E402
from shared.gpt import count_parameters  # noqa: E402
from shared.instructions import answer_loss, check_entries, collate_instructions, instruction_loader  # noqa: E402
from shared.lora import apply_lora, count_trainable, merge_lora  # noqa: E402
from shared.metrics import bootstrap  # noqa: E402
from shared.nf4 import quantise_model  # noqa: E402
from shared.runtime import evaluating, get_device, made_on, peak_memory, scale, seed_everything  # noqa: E402
from shared.training import make_optimizer, training_step  # noqa: E402

OUT = Path(__file__).with_name("lora_smollm2.json")
ATTENTION_TWO = ("query", "value")
METHODS = {  # how a model is prepared, and the rate at which it trains: one rate each, chosen before these runs
    "full": {"lr": 3e-5}, "LoRA r=8": {"rank": 8, "lr": 1e-3}, "QLoRA r=8": {"rank": 8, "lr": 1e-3, "four_bits": True},
    "LoRA q, v r=8": {"rank": 8, "lr": 1e-3, "targets": ATTENTION_TWO}, "LoRA r=1": {"rank": 1, "lr": 1e-3},
    "LoRA r=4": {"rank": 4, "lr": 1e-3}, "LoRA r=16": {"rank": 16, "lr": 1e-3},
}  # fmt: skip
AS_IT_CAME = "as it came"
TWO_SEEDS = ("full", "LoRA r=8")
COST = ("full", "LoRA r=8", "QLoRA r=8")
SPAM = {"full": {"lr": 1e-3}, "LoRA r=8": {"rank": 8, "lr": 3e-3}, "head only": {"lr": 1e-2}}
ITEMS, TEST_EVERY, ALPACA, HELD_OUT = 300, 2, {"quick": 400, "full": 60_000}, 100
BATCH, MAX_TOKENS = 8, 256


def prepared(model, rank=None, targets=("blocks",), four_bits=False, lr=None):
    """`model` as a method trains it: in 4 bits or not, with adapters (alpha is twice the rank) or whole."""
    if four_bits:
        quantise_model(model)
    return apply_lora(model, rank, 2 * rank, targets) if rank else model.requires_grad_(True)


def fine_tune(model, items, lr, seed):
    """One pass over the items; what a row of the table says of it."""
    loader = instruction_loader(items, BATCH, seed=seed)
    return train_timed(model, loader, lr=lr, warmup_steps=len(loader) // 10, weight_decay=0.0, eval_every=10**6,
                       seed=seed)  # fmt: skip


def run_families(method, seed, tiny):
    """SmolLM2 trained by a method on narrow items, and its answers to others."""
    training, test = families.items()
    training, test = training[:: -(-len(training) // (16 if tiny else ITEMS))], test[:: 40 if tiny else TEST_EVERY]
    model, tokenizer = load_base("smollm2")
    model.to(get_device())
    row = {"base": tokenizer.name, "parameters": count_parameters(model), "data": sha_of([training, test])}
    if method != AS_IT_CAME:
        prepared(model, **METHODS[method])
        row |= {"trained": count_trainable(model), "items": len(training), "settings": METHODS[method]}
        row |= fine_tune(model, encoded(training, tokenizer, encode_chat, MAX_TOKENS), METHODS[method]["lr"], seed)
        if METHODS[method].get("rank"):
            merge_lora(model)  # answers come faster, and 4 bits are not made into numbers for each token
    answers = answers_of(model, tokenizer, test, encode_chat, NARROW_TOKENS, batch_size=48)
    exact = [families.judge(one, answer) for one, answer in zip(test, answers, strict=True)]
    row |= {what: sum(one[what] for one in exact) for what in ("exact", "form", "key")}
    return row | {"n": len(test), "right": [int(one["exact"]) for one in exact], "answers": answers}


def batch_for_cost(tokenizer):
    """One batch of narrow items, the same for all methods."""
    return collate_instructions(encoded(families.items()[0][::40][:BATCH], tokenizer, encode_chat))


def tensor_bytes(model, optimizer):
    """Bytes of what training keeps between two steps: weights, gradients, the optimizer's moments."""
    weights = {t.data_ptr(): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    return {"weights": sum(weights.values()), "gradients": sum(p.numel() * p.element_size() for p in trained),
            "optimizer": sum(t.numel() * t.element_size() for t in moments)}  # fmt: skip


def one_step(model, optimizer, batch):
    """One training step on a batch."""
    training_step(model, [batch], answer_loss, optimizer, torch.amp.GradScaler(get_device().type, enabled=False))


def peak_of(method, threads):
    """The most bytes that a process needs for two steps of a method: run in a process of its own."""
    torch.set_num_threads(threads)
    model, tokenizer = load_base("smollm2")
    prepared(model.to(get_device()), **METHODS[method])
    optimizer = make_optimizer(model, METHODS[method]["lr"], 0.0)
    for _ in range(2):
        one_step(model.train(), optimizer, batch_for_cost(tokenizer))
    return peak_memory(get_device())


def run_cost(rounds):
    """Seconds of a step of each method, in turns so that all meet the same machine; bytes; peak memory."""
    (base, tokenizer), found = load_base("smollm2"), {}
    batch, models = batch_for_cost(tokenizer), {}
    for method in COST:
        model = prepared(copy.deepcopy(base).to(get_device()), **METHODS[method]).train()
        models[method] = model, make_optimizer(model, 1e-6, 0.0)
        one_step(*models[method], batch)  # the first one makes the moments
        found[method] = {"trained": count_trainable(model), **tensor_bytes(*models[method]), "seconds": []}
    for _ in range(rounds):
        for method in COST:
            started = time.perf_counter()
            one_step(*models[method], batch)
            found[method]["seconds"].append(round(time.perf_counter() - started, 3))
    del models, model, base
    for method in COST:
        found[method]["tokens_per_second"] = round(batch[0].numel() / statistics.median(found[method]["seconds"]), 1)
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak is that of a whole process
            found[method]["peak"] = pool.apply(peak_of, (method, torch.get_num_threads()))
    return {"base": tokenizer.name, "batch": list(batch[0].shape), "methods": found}


def run_spam(method, seed, tiny):
    """The classifier of lesson 4.1 on the course base, trained whole, by LoRA or in its last layer only."""
    messages = deduplicate(parse_messages(data.load("sms_spam")))
    training, _, test = split(messages)
    training, test = (training[:64], test[:40]) if tiny else (training, test)
    model, tokenizer = load_base(COURSE_BASE)
    model.to(get_device())
    settings = SPAM[method]
    if settings.get("rank"):
        prepared(model, **settings)
    classifier = SpamClassifier(model, tokenizer)
    if method == "head only":
        model.requires_grad_(False)
    labels, started = torch.tensor([LABELS.index(label) for label, _ in training]), time.perf_counter()
    finished(train_classifier(classifier, training, epochs=1, batch_size=16, lr=settings["lr"], warmup_steps=20,
                              seed=seed, weight_decay=0.0, weights=class_weights(labels, len(LABELS))))  # fmt: skip
    seconds = time.perf_counter() - started
    called = classifier.predict([text for _, text in test])[0]
    pairs = [(label, found) for (label, _), found in zip(test, called, strict=True)]
    return {"base": tokenizer.name, "trained": count_trainable(classifier), "parameters": count_parameters(model),
            "settings": settings, "data": sha_of([training, test]), "train_seconds": round(seconds, 1), "n": len(test),
            "right": [int(a == b) for a, b in pairs], "exact": sum(a == b for a, b in pairs),
            "hits": sum(a == b == "spam" for a, b in pairs), "spam": sum(a == "spam" for a, _ in pairs),
            "called": sum(b == "spam" for _, b in pairs)}  # fmt: skip


def entry_losses(model, items):
    """Mean loss in nats of the answer's tokens, for each item alone."""
    batches = ([tensor.to(get_device()) for tensor in collate_instructions([item])] for item in items)
    with evaluating(model):
        return [answer_loss(model, *batch).item() for batch in batches]


def run_alpaca(method, seed, tiny):
    """The loss on held-out entries of Alpaca before and after one pass over others."""
    file = data.fetch("alpaca")
    training, held_out = random_split(check_entries(data.load(file))[0], (0.9, 0.1))
    model, tokenizer = load_base("smollm2")
    model.to(get_device())
    items = encoded(training[: 12 if tiny else ALPACA[scale()]], tokenizer, encode_chat, MAX_TOKENS)
    asked = encoded(held_out[: 6 if tiny else HELD_OUT], tokenizer, encode_chat, MAX_TOKENS)
    before = torch.tensor(entry_losses(model, asked))
    prepared(model, **METHODS[method])
    row = fine_tune(model, items, METHODS[method]["lr"], seed)
    after = torch.tensor(entry_losses(model, asked))
    interval = bootstrap(after - before, lambda some: some.mean().item())
    return row | {"base": tokenizer.name, "data": sha_of([training, held_out]), "file": Path(file).name,
                  "bundled_sample": data.places.is_sample(file), "items": len(items), "n": len(asked),
                  "settings": METHODS[method], "trained": count_trainable(model),
                  "before": round(before.mean().item(), 4), "after": round(after.mean().item(), 4),
                  "difference_interval": [round(end, 4) for end in interval]}  # fmt: skip


def plan(seeds):
    """All runs as (task, method, seed), the most telling first."""
    first = [("families", AS_IT_CAME, None), ("cost", "all", None)]
    runs = [("families", method, 0) for method in METHODS] + [("spam", method, 0) for method in SPAM]
    runs += [("alpaca", "LoRA r=8", 0)]
    again = [("families", method, seed) for seed in range(1, seeds) for method in TWO_SEEDS]
    return first + runs + again if seeds else first


def main(argv=None):
    """`python 05_instruction_finetune/lora_smollm2.py`: make or continue the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["families", "cost", "spam", "alpaca"], help="one task")
    parser.add_argument("--seeds", type=int, default=2, help="of full fine-tuning and LoRA r=8 on families (default 2)")
    parser.add_argument("--runs", type=int, help="only so many runs now; the same command goes on")
    parser.add_argument("--tiny", action="store_true", help="a few items only, for a trial")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: lora_smollm2.json)")
    args = parser.parse_args(argv)
    if args.seeds < 0 or args.runs is not None and args.runs < 1:
        parser.error(f"--seeds is {args.seeds} (at least 0), --runs {args.runs} (at least 1)")
    table = {"tiny": args.tiny, "scale": scale(), "runs": []}
    try:
        table["runs"] = continue_table(args.out, {"tiny": args.tiny, "scale": scale()})
    except ValueError as error:
        parser.error(str(error))
    done = {(row["task"], row["method"], row["seed"]) for row in table["runs"]}
    left = [run for run in plan(args.seeds) if args.only in (None, run[0]) and run not in done]
    made = [row for row in table["runs"] if row["task"] != "spam"]
    if left and made:
        check_base(parser, args.out, made, Path(data.fetch("smollm2")).stem)
    for row in table["runs"]:
        here = json.loads(json.dumps((SPAM if row["task"] == "spam" else METHODS).get(row["method"])))
        if (then := row.get("settings")) not in (None, here):
            parser.error(f"{args.out} holds {row['task']}, {row['method']}, with {then}, here {here}: name another "
                         "file with --out")  # fmt: skip
    for task, method, seed in left[: args.runs]:
        seed_everything(seed or 0)
        started = time.perf_counter()
        if task == "cost":
            row = run_cost(1 if args.tiny else 15)
        else:
            row = {"families": run_families, "spam": run_spam, "alpaca": run_alpaca}[task](method, seed, args.tiny)
        head = {"task": task, "method": method, "seed": seed} | made_on()
        head["seconds"] = round(time.perf_counter() - started, 1)
        table["runs"].append(head | row)
        write_table(args.out, table)
        told = f"{row['exact']} of {row['n']}" if "exact" in row else {k: row.get(k) for k in ("before", "after")}
        print(f"{task}, {method}, seed {seed}: {told} ({head['seconds']} s)", flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
