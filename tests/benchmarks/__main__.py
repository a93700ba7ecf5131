"""Speed and memory beside the peers: `python -m tests.benchmarks [train] [generate] [tokenizer] [classify]`.

Peers: `transformers` (GPT2LMHeadModel) and the PyPI package `llms-from-scratch` (its fast class; left out where it is
not installed, see requirements.txt beside this file). All variants run in one process, round by round, in an order
drawn anew for each round, since the memory that one leaves behind may help or hinder the next. The table gives the
median of the rounds and each variant's speed relative to the fastest peer. Peak memory is measured in a process of its
own for each variant. Numbers depend on the machine: the last line names it.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import torch
import torch.nn.functional as F

from shared import data
from shared.checkpoints import load_base
from shared.classification import SpamClassifier, parse_messages
from shared.generation import generate
from shared.gpt import GPT2_CONFIGS, GPTConfig, GPTModel
from shared.loss import chunked_loss, mixed_precision, next_token_loss
from shared.runtime import autocast_dtype, get_device, peak_memory
from shared.tokenizer import BPETokenizer, load_tokenizer

SIZES = {
    "30m": (GPTConfig(50257, 256, emb_dim=384, n_heads=6, n_layers=6), 8),
    "124m": (GPTConfig(50257, 256, emb_dim=768, n_heads=12, n_layers=12), 4),
}


def hugging_face(config):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.emb_dim,
        n_layer=config.n_layers, n_head=config.n_heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, loss_type="ForCausalLM",
    ))  # fmt: skip


def from_scratch(config):
    from llms_from_scratch.ch04 import GPTModelFast

    return GPTModelFast({
        "vocab_size": config.vocab_size, "context_length": config.context_length, "emb_dim": config.emb_dim,
        "n_heads": config.n_heads, "n_layers": config.n_layers, "drop_rate": 0.0, "qkv_bias": True,
    })  # fmt: skip


def plain_loss(model, x, y):
    """The loss as the textbook writes it: all logits at once."""
    return F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())


# name -> (model, loss); transformers shifts the labels itself, which costs it what it costs its users
TRAINED = {
    "this course": (GPTModel, next_token_loss),
    "this course, logits in chunks": (GPTModel, chunked_loss),
    "transformers": (hugging_face, lambda model, x, y: model(x, labels=y).loss),
    "llms-from-scratch (fast class)": (from_scratch, plain_loss),
}
MEASURED = ("tokenizer", "train", "generate", "classify")
PEERS = ("transformers", "llms-from-scratch (fast class)")


def available(names):
    try:
        import llms_from_scratch  # noqa: F401
    except ImportError:
        return [name for name in names if "llms-from-scratch" not in name]
    return list(names)


def make_step(name, config, batch, device, compiled, dtype):
    """A training step of one variant: forward, backward, fused AdamW."""
    torch.manual_seed(0)
    build, loss_fn = TRAINED[name]
    model = build(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, y = torch.randint(0, config.vocab_size, (2, batch, config.context_length), device=device)
    loss_fn = torch.compile(loss_fn) if compiled else loss_fn

    def step():
        with mixed_precision(device) if dtype else torch.autocast(device.type, enabled=False):
            loss = loss_fn(model, x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: all threads of this process, added up
clock = CLOCKS["wall"]


def rounds(variants, n_rounds, warmup=1):
    """Median seconds of each variant's calls, round by round, so that a disturbance meets all of them."""
    times, order = {name: [] for name in variants}, random.Random(0)
    for i in range(n_rounds + warmup):
        for name in order.sample(list(variants), len(variants)):
            started = clock()
            variants[name]()
            if i >= warmup:
                times[name].append(clock() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def bench_train(size, compiled, n_rounds, device, dtype, memory=True):
    config, batch = SIZES[size]
    names = available(TRAINED)
    steps = {name: make_step(name, config, batch, device, compiled, dtype) for name in names}
    seconds = rounds(steps, n_rounds, warmup=2)
    speed = {name: batch * config.context_length / s for name, s in seconds.items()}
    best = max(speed[name] for name in PEERS if name in speed)
    steps.clear()
    gc.collect()
    mode = "compiled" if compiled else "eager"
    return [{"what": f"training step {size}, {mode}", "variant": name, "value": round(value, 1), "unit": "tokens/s",
             "ratio": round(value / best, 2), "peak MB": peak_megabytes(name, size, compiled) if memory else None}
            for name, value in speed.items()]  # fmt: skip


def peak_megabytes(name, size, compiled):
    """Peak resident memory in MB of three training steps in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks", "--peak-of", name, "--size", size]
    done = subprocess.run(command + ["--compile"] * compiled, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def bench_generate(n_new, n_rounds, device):
    """Tokens per second after a prompt of 32 tokens; every variant in float32 and bfloat16, the better one counts."""
    config, rows = GPT2_CONFIGS["gpt2"], []
    for batch in (1, 8):
        torch.manual_seed(0)
        prompt = torch.randint(0, config.vocab_size, (batch, 32), device=device)
        mask, probes, best = torch.ones_like(prompt), {}, {}
        for dtype in (torch.float32, torch.bfloat16):
            ours = GPTModel(config).to(device, dtype).eval()
            theirs = hugging_face(config).to(device, dtype).eval()
            variants = {
                "this course": partial(generate, ours, prompt),
                "transformers": partial(theirs.generate, prompt, attention_mask=mask, do_sample=False),
            }
            for name in list(variants):  # bfloat16 without hardware for it: a short run says enough
                seconds = rounds({name: partial(variants[name], max_new_tokens=4)}, 2)[name]
                if seconds > 2 * probes.setdefault(name, seconds):
                    print(f"batch {batch}, {name}: {dtype} takes {seconds / probes[name]:.1f} times as long; left out")
                    del variants[name]
            full = {name: partial(function, max_new_tokens=n_new) for name, function in variants.items()}
            for name, seconds in rounds(full, n_rounds).items():
                if name not in best or seconds < best[name][1]:
                    best[name] = (str(dtype).removeprefix("torch."), seconds)
        base = batch * n_new / best["transformers"][1]
        for name, (dtype, seconds) in best.items():
            value = batch * n_new / seconds
            rows.append({"what": f"generate 124M, {n_new} tokens, batch {batch}", "variant": f"{name} ({dtype})",
                         "value": round(value, 1), "unit": "tokens/s", "ratio": round(value / base, 2)})  # fmt: skip
    return rows


def bench_tokenizer():
    path = data.fetch("the_verdict")
    text = path.read_text(encoding="utf-8")
    for module in ("argparse", "asyncio.events", "inspect", "pydoc", "turtle", "typing", "tarfile", "decimal"):
        __import__(module)
        source = sys.modules.get(module)
        text += open(source.__file__, encoding="utf-8").read() if source and source.__file__ else ""
    text = (text * 3)[:1_000_000]
    started = time.perf_counter()
    tokenizer = BPETokenizer().train(text, 256 + 1000 + 1)
    trained = time.perf_counter() - started
    gpt2 = load_tokenizer("gpt2")
    started = time.perf_counter()
    ids = tokenizer.encode_ordinary(text)
    encoded = time.perf_counter() - started
    assert tokenizer.decode(ids) == text
    started = time.perf_counter()
    gpt2.encode_ordinary(text)
    theirs = time.perf_counter() - started
    return [
        {"what": "BPE: 1,000 merges on 1 MB", "variant": "this course", "value": round(trained, 2), "unit": "s"},
        {"what": "BPE: encode 1 MB", "variant": "this course", "value": round(1 / encoded, 2), "unit": "MB/s"},
        {"what": "BPE: encode 1 MB", "variant": "tiktoken", "value": round(1 / theirs, 2), "unit": "MB/s"},
    ]


def bench_classify(n_rounds, device):
    """Messages per second of `predict` and of transformers' pipeline on the folder that `save` wrote, real messages."""
    from transformers import pipeline

    path, rows = data.fetch("sms_spam"), []
    texts = [text for _, text in parse_messages(data.load(path)) if text.strip()][:256]
    kind = "sample" if data.places.is_sample(path) else "SMS"
    torch.manual_seed(0)
    ours = SpamClassifier(*load_base()).to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        pipe = pipeline("text-classification", model=folder, device=device)
    for batch, n in ((1, 64), (32, 256)):
        variants = {
            "this course": partial(ours.predict, texts[:n], batch_size=batch),
            "transformers": partial(pipe, texts[:n], batch_size=batch, truncation=True),
        }
        seconds = rounds(variants, n_rounds)
        rows += [{"what": f"classify {kind}, batch {batch}", "variant": name, "value": round(n / s, 1),
                  "unit": "messages/s", "ratio": round(seconds["transformers"] / s, 2)}
                 for name, s in seconds.items()]  # fmt: skip
    return rows


def machine(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    if device.type == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    dtype, reason = autocast_dtype(device, explain=True)
    numbers = f"best training dtype {dtype or torch.float32} ({reason})"
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, {numbers}"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("what", nargs="*", choices=[*MEASURED, []], default=[], metavar="WHAT",
                        help=f"{', '.join(MEASURED)} (default: all)")
    parser.add_argument("--size", choices=list(SIZES), default="30m", help="of the model in `train`")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")
    parser.add_argument("--rounds", type=int, default=5, help="how often each variant is measured")
    parser.add_argument("--new-tokens", type=int, default=128, help="how long a text `generate` writes")
    parser.add_argument("--no-memory", action="store_true", help="speed only")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine that is not alone")
    parser.add_argument("--out", default="build/benchmarks.json", help="where the numbers are added, a line a run")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    global clock
    clock = CLOCKS[args.clock]
    device = get_device()
    dtype = autocast_dtype(device)
    if args.peak_of:
        config, batch = SIZES[args.size]
        step = make_step(args.peak_of, config, batch, device, args.compile, dtype)
        for _ in range(3):
            step()
        print(peak_memory(device) // 2**20)
        return
    rows = []
    for what in args.what or MEASURED:
        if what == "train":
            rows += bench_train(args.size, args.compile, args.rounds, device, dtype, not args.no_memory)
        elif what == "generate":
            rows += bench_generate(args.new_tokens, args.rounds, device)
        elif what == "classify":
            rows += bench_classify(args.rounds, device)
        else:
            rows += bench_tokenizer()
    print("| measured | variant | value | ratio to the fastest peer | peak MB |\n|---|---|---:|---:|---:|")
    for r in rows:
        value, peak = f"{r['value']:,} {r['unit']}", r.get("peak MB") or ""
        print(f"| {r['what']} | {r['variant']} | {value} | {r.get('ratio', '')} | {peak} |")
    print(f"\n{machine(device)}; {args.clock} time")
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps({"machine": machine(device), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
