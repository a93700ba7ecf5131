"""Loading a checkpoint of GPT-2's size: seconds and peak memory, here and in transformers, each in a fresh process.

    python -m tests.benchmarks.weights [--size gpt2|gpt2-medium] [--rounds N]

The file holds random numbers under GPT-2's names, in GPT-2's layout. Needs tests/benchmarks/requirements.txt.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from shared.checkpoints import load_model, save_model
from shared.gpt import GPT2_CONFIGS, GPTModel
from shared.runtime import peak_memory


def ours(folder):
    return load_model(folder)[0]


def theirs(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


LOADERS = {"this course": ours, "transformers": theirs}


def measure(name, folder):
    """Of this process: peak bytes before; seconds to load, and until the first logits; peak bytes after."""
    if name == "transformers":
        importlib.import_module("transformers.models.gpt2.modeling_gpt2")  # importing is not loading
    before, started = peak_memory(), time.perf_counter()
    model = LOADERS[name](folder)
    loaded = time.perf_counter() - started
    with torch.no_grad():
        model(torch.arange(32)[None])
    return {"load": loaded, "logits": time.perf_counter() - started, "peak": peak_memory() - before}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(GPT2_CONFIGS), default="gpt2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    found = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as folder:
        save_model(GPTModel(GPT2_CONFIGS[args.size]), None, folder)
        size = Path(folder, "model.safetensors").stat().st_size
        for _ in range(args.rounds):
            for name, runs in found.items():
                command = [sys.executable, "-m", "tests.benchmarks.weights", "--measure", name, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    print("| | load, s | until the first logits, s | peak memory / file |\n|---|---:|---:|---:|")
    for name, runs in found.items():
        load, logits, peak = (statistics.median(run[key] for run in runs) for key in ("load", "logits", "peak"))
        print(f"| {name} | {load:.2f} | {logits:.2f} | {peak / size:.2f} |")
    print(f"\na file of {size:,} bytes, medians of {args.rounds} fresh processes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
