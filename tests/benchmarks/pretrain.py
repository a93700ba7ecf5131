"""A training step of `03_gpt/pretrain.py`, whole, beside the peer's: `python -m tests.benchmarks.pretrain`.

    python -m tests.benchmarks.pretrain [--size 30m|124m] [--compile] [--steps N] [--peers NAME ...]

The script runs as a user runs it, with its batches, clipping and record of each step; before each of its steps the
peers of `python -m tests.benchmarks train` take one, in the same process. The table gives tokens per second (median of
the steps) and how much faster than the peer the script was (median over the pairs of neighbouring steps, with the
range in which the middle half of them lies). Needs tests/benchmarks/requirements.txt.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from shared import data
from shared.runtime import autocast_dtype, get_device
from tests.benchmarks.__main__ import PEERS, SIZES, available, machine, make_step

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "03_gpt"))

import prepare_corpus  # noqa: E402
import pretrain  # noqa: E402


class TakingTurns:
    """Stands in the place of `pretrain.training_step`: first the others take a step, then the script goes on."""

    def __init__(self, others):
        self.others, self.step = others, pretrain.training_step
        self.seconds = {name: [] for name in ["pretrain.py", *others]}
        self.script_since = None

    def __call__(self, *args, **options):
        if self.script_since is not None:  # from one call to the next: the script's whole step
            self.seconds["pretrain.py"].append(time.perf_counter() - self.script_since)
        for name, step in self.others.items():
            started = time.perf_counter()
            step()
            self.seconds[name].append(time.perf_counter() - started)
        self.script_since = time.perf_counter()
        return self.step(*args, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="124m")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=12, help="steps that count, after two that do not")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=available(PEERS))
    args = parser.parse_args()
    device, (config, batch) = get_device(), SIZES[args.size]
    tokens = batch * config.context_length
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder, "corpus"), Path(folder, "run")
        source = str(data.fetch("slimpajama_validation"))
        if prepare_corpus.main(["--source", source, "--limit", "2MB", "--workers", "1", "--validation", "0.05",
                                "--out", str(corpus)]):  # fmt: skip
            raise SystemExit(1)
        vocab_size = prepare_corpus.read_manifest(corpus)["tokenizer"]["n_vocab"]
        config = replace(config, vocab_size=vocab_size)
        dtype = autocast_dtype(device)
        others = {name: make_step(name, config, batch, device, args.compile, dtype) for name in args.peers}
        pretrain.training_step = turns = TakingTurns(others)
        pretrain.main([
            "--data", str(corpus), "--out", str(out), "--layers", str(config.n_layers), "--heads", str(config.n_heads),
            "--width", str(config.emb_dim), "--context", str(config.context_length), "--batch", str(batch),
            "--tokens-per-step", str(tokens), "--tokens", str((args.steps + 3) * tokens), "--eval-windows", "8",
            "--eval-every", str(args.steps + 3), "--checkpoint-minutes", "600", *["--compile"] * args.compile,
        ])  # fmt: skip
    seconds = {name: torch.tensor(s[2 : args.steps + 2]) for name, s in turns.seconds.items()}
    print(f"\n{args.size}, {'compiled' if args.compile else 'eager'}, vocabulary {vocab_size:,}, {args.steps} steps")
    for name, s in seconds.items():
        low, ratio, high = (s / seconds["pretrain.py"]).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        print(f"{name:32} {tokens / s.median():7.1f} tokens/s   the script: {ratio:.2f} ({low:.2f} to {high:.2f})")
    print(machine(device))


if __name__ == "__main__":
    main()
