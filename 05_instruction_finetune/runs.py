"""What the scripts that fill a table with training runs have in common."""

import hashlib
import json
import math
import time

import torch

from shared.instructions import answer_loss
from shared.training import train


def sha_of(content):
    """The checksum of what JSON writes for it."""
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()


def encoded(entries, tokenizer, encode, max_tokens=math.inf):
    """Entries of at most `max_tokens` as [(ids [n], is_answer [n])]; `encode` gives the ids of prompt and answer."""
    pairs = [encode(entry, tokenizer) for entry in entries]
    items = [(torch.tensor(a + b), torch.arange(len(a) + len(b)) >= len(a)) for a, b in pairs]
    return [item for item in items if len(item[0]) <= max_tokens]


def finished(history):
    """`history` back, unless training was stopped: nothing half-trained goes into a table, so the program ends."""
    if history.interrupted:
        raise SystemExit("stopped; the same command goes on")
    return history


def check_base(parser, out, rows, name):
    """End the program in one line where `rows` of the table `out` were made with another base than `name`.

    Offline a small stand-in takes SmolLM2's place: its results must not stand beside SmolLM2's, or for them.
    """
    if others := {row["base"] for row in rows if "base" in row} - {name}:
        held = ", ".join(sorted(others))
        parser.error(f"{out} holds runs of {held}, and here is {name}: name another file with --out")


def train_timed(model, loader, **settings):
    """Train on the answers in the batches of `loader`; what a row of the table says of it."""
    started = time.perf_counter()
    history = finished(train(model, loader, loss_fn=answer_loss, **settings))
    return {"steps": history.steps_done, "tokens": history.tokens_done,
            "train_seconds": round(time.perf_counter() - started, 1)}  # fmt: skip
