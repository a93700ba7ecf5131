"""Pretrain a GPT on a folder of token shards (see prepare_corpus.py): on a CPU, a GPU, or many.

    python 03_gpt/pretrain.py --data data/corpus --model gpt2 --tokens 2.5B --tokens-per-step 524288 --out data/my_gpt2
    python 03_gpt/pretrain.py --data data/corpus --layers 6 --heads 6 --width 312 --context 256 --out data/small
    torchrun --nproc-per-node 8 03_gpt/pretrain.py ...       several GPUs, on several machines too; with --fsdp, sharded

Killed or stopped (Ctrl-C), the same command with --resume goes on. OUT is a Hugging Face checkpoint at every moment
after the first save: `shared.checkpoints.load_base(OUT)` and `AutoModelForCausalLM.from_pretrained(OUT)` read it.
Beside it: checkpoints/ (all that --resume needs), metrics.jsonl (one line a step), loss.png, samples.txt.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "03_gpt")]

from prepare_corpus import folder_name, open_shards, read_manifest, verify_corpus  # noqa: E402
from pretrain_processes import Processes, call, gather, load_optimizer, recompute_blocks, synchronised, wrap  # noqa: E402

from shared.checkpoints import TOKENIZER_FILES, save_model  # noqa: E402
from shared.files import write_atomically  # noqa: E402
from shared.generation import generate  # noqa: E402
from shared.gpt import GPT2_CONFIGS, GPTConfig, GPTModel, count_parameters  # noqa: E402
from shared.loss import mean_loss  # noqa: E402
from shared.resume import History, load_state, read_state, save_state  # noqa: E402
from shared.runtime import autocast_dtype, describe, get_device, peak_memory, seed_everything, stop_on  # noqa: E402
from shared.tokenizer import load_tokenizer, with_end_of_text  # noqa: E402
from shared.training import learning_rate, make_optimizer, training_step  # noqa: E402

# Peak TFLOP/s of matrix products without sparsity, bfloat16 (float16 where there is none), from NVIDIA's data sheets.
PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "V100": 125,
               "T4": 65}  # fmt: skip


# ---- the data: random windows of the token stream


class Windows:
    """Random windows of `context_length` tokens from the memory-mapped shards of one split.

    What a step reads is a function of (seed, step) alone: the position in the data is the number of the step.
    """

    def __init__(self, shards, context_length, seed, split="train"):
        self.shards, self.context_length, self.seed = shards, context_length, seed
        self.ends = np.cumsum([max(0, len(shard) - context_length) for shard in shards])  # of the possible starts
        if not len(self.ends) or self.ends[-1] == 0:
            raise ValueError(f"no shard of the {split} split holds a window of {context_length} tokens and the one to "
                             "predict after it: it takes a smaller --context, or a larger corpus")  # fmt: skip

    def random(self, step, n_rows):
        """Where the windows of a step start: one in each of `n_rows` equal parts of the stream, so that every step
        sees the mix of the sources, and every token is as likely as any other: [n_rows] int64."""
        rng = np.random.default_rng([self.seed, step])
        return ((np.arange(n_rows) + rng.random(n_rows)) / n_rows * self.ends[-1]).astype(np.int64)

    def evenly(self, n_rows, world=1):
        """At most `n_rows` starts at equal distances, always the same, for evaluation; as many for each process."""
        n_rows = max(1, min(n_rows, int(self.ends[-1]) // self.context_length) // world) * world
        return (np.arange(n_rows) * (int(self.ends[-1]) / n_rows)).astype(np.int64)

    def read(self, starts):
        """The windows at `starts` and the same one token later: (inputs, targets), each [B, T] int64."""
        rows = np.empty((len(starts), self.context_length + 1), dtype=np.int64)
        for row, start in zip(rows, starts, strict=True):
            i = int(np.searchsorted(self.ends, start, side="right"))
            first = int(start - (self.ends[i - 1] if i else 0))
            row[:] = self.shards[i][first : first + self.context_length + 1]
        rows = torch.from_numpy(rows)
        return rows[:, :-1], rows[:, 1:]


def batches_of(windows, starts, batch, rank=0, world=1):
    """The share of one process in the windows at `starts`, in batches of `batch` windows."""
    mine = starts[rank::world]
    return [windows.read(mine[i : i + batch]) for i in range(0, len(mine), batch)]


# ---- the optimizer


ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for `matrices`: each one's update is made orthogonal. The rest is left to `adamw`.

    Scaled as by Liu et al. 2025, it takes AdamW's rate. It is torch.optim.Muon with adjust_lr_fn="match_rms_adamw",
    except that this one multiplies in bfloat16 only where the training does: where bfloat16 is emulated, that takes 25
    times as long as float32 (two CPU cores, 9 M parameters: 22 s a step).
    """

    def __init__(self, matrices, adamw, lr, weight_decay):
        super().__init__([{"params": matrices, "lr": lr, "weight_decay": weight_decay}, *adamw.param_groups], {})
        self.adamw = adamw

    def load_state_dict(self, state):
        others = {name for values in state["state"].values() for name in values} - {"momentum", *ADAMW_STATE}
        if others:
            raise ValueError(f"it keeps {', '.join(sorted(others))}, which this Muon does not")
        super().load_state_dict(state)

    @torch.no_grad()
    def step(self):
        group, *others = self.param_groups
        for p in group["params"]:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"].lerp_(p.grad, 0.05)
            update = orthogonalize(p.grad.lerp(momentum, 0.95))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)
        self.adamw.state, self.adamw.param_groups = self.state, others
        self.adamw.step()


def orthogonalize(matrix):
    """Five Newton-Schulz iterations: [m, n] -> [m, n] with the same singular vectors, all singular values near 1."""
    x = matrix.bfloat16() if autocast_dtype(matrix.device) == torch.bfloat16 else matrix
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def build_optimizer(model, name, lr, weight_decay):
    """AdamW for all, or ("muon") Muon for the matrices of the blocks and AdamW for the rest."""
    adamw = make_optimizer(model, lr, weight_decay)
    if name == "adamw":
        return adamw
    inside, group = set(model.blocks.parameters()), adamw.param_groups[0]  # of all matrices
    matrices = [p for p in group["params"] if p in inside]
    group["params"] = [p for p in group["params"] if p not in inside]
    return Muon(matrices, adamw, lr, weight_decay)


# ---- checkpoints

# What saving a model writes or takes away; before its first checkpoint, a run has made none of these.
FOLDER_OF_A_MODEL = ("model.safetensors", "config.json", "generation_config.json", "tokenizer_config.json",
                     *TOKENIZER_FILES)  # fmt: skip
NOTES = ("settings.json", "metrics.jsonl", "samples.txt", "loss.png")  # what a run writes besides, the first one first


def checkpoints_in(out):
    """The checkpoints of a run, oldest first; not the user's own copies, whatever they are called."""
    return sorted((out / "checkpoints").glob(f"step_{'[0-9]' * 8}.safetensors"))


def last_good(out):
    """Names the newest checkpoint whose checksum is right."""
    for file in reversed(checkpoints_in(out)):
        with contextlib.suppress(ValueError):
            read_state(file)
            return f"The last good checkpoint: {file}"
    return "The last good checkpoint: none yet"


def refuse_strangers(out):
    """Raises SystemExit where OUT, which holds no checkpoint, has a file that a run would overwrite and none made."""
    noted = {}
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        noted = dict(json.loads((out / "settings.json").read_bytes()))
    names = FOLDER_OF_A_MODEL + (() if {"config", "corpus"} <= noted.keys() else NOTES)
    for name in names if (out / "checkpoints").is_dir() else (*names, "checkpoints"):
        if os.path.lexists(out / name):
            raise SystemExit(f"{out} holds a {name}, but no checkpoint to go on from: give another --out")


def load_newest(out, model, scaler, first=True):
    """Load the newest checkpoint that is whole into `model`: (history, state of the optimizer).

    Those that are not whole get the ending .damaged from the first process, so that none counts as the last.
    """
    state, damaged = {}, []
    for file in reversed(checkpoints_in(out)):
        try:
            history = load_state(file, model, SimpleNamespace(load_state_dict=state.update), scaler)
            for bad in damaged if first else []:
                os.replace(bad, f"{bad}.damaged")
            return history, state
        except FileNotFoundError:  # the first process was faster
            continue
        except ValueError as error:
            if "no whole checkpoint" not in str(error):
                raise SystemExit(f"--resume: {error}") from None
            print(f"{error}; taking the one before")
            damaged.append(file)
    raise SystemExit(f"--resume: no checkpoint in {out / 'checkpoints'} is whole")


def save_run(out, keep, model, optimizer, tokenizer, scaler, history):
    """A checkpoint for --resume, the last `keep` of them, and the model as a Hugging Face folder. False: disk full."""
    file = out / "checkpoints" / f"step_{history.steps_done:08d}.safetensors"
    try:
        save_state(file, model, optimizer, scaler, history)
        for old in checkpoints_in(out)[:-keep]:
            old.unlink()
        save_model(model, tokenizer, out)
        return True
    except OSError as error:
        print(f"step {history.steps_done}: not saved: {error}")
        return False
    except FloatingPointError as error:  # the last update broke the weights
        raise SystemExit(f"step {history.steps_done}: {error}. {last_good(out)}") from None


# ---- what is measured


def flops_per_token(config):
    """Floating-point operations to train on one token: 6 for each weight in a matrix product, and attention's own.

    As counted by Chowdhery et al. 2022 (PaLM), appendix B, which gives causal attention no discount.
    """
    matrices = 12 * config.n_layers * config.emb_dim**2 + config.vocab_size * config.emb_dim
    return 6 * matrices + 12 * config.n_layers * config.emb_dim * config.context_length


def peak_flops(device, tflops=None):
    """FLOP/s that the device can reach at best: as told, or from the table; None where it is not known."""
    if tflops:
        return tflops * 1e12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak * 1e12 for known, peak in PEAK_TFLOPS.items() if known in name.replace("-", " ").split()), None)


def parse_entry(line):
    """A line of metrics.jsonl as a dict; None where it is no entry of a run, such as a last line that was cut off."""
    try:
        entry = json.loads(line)
        numbers = [entry["step"], entry["tokens"], entry["loss"], entry.get("val_loss", 0.0)]
        return entry if all(isinstance(number, (int, float)) for number in numbers) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def read_metrics(out):
    """The lines of OUT/metrics.jsonl as dicts, without those that are no entries."""
    file = out / "metrics.jsonl"
    entries = map(parse_entry, file.read_bytes().splitlines() if file.is_file() else [])
    return [entry for entry in entries if entry]


def note_step(out, entry):
    """Add a line to OUT/metrics.jsonl; where the disk is full, the run goes on without it."""
    try:
        with open(out / "metrics.jsonl", "a", encoding="utf-8") as metrics:
            metrics.write(json.dumps(entry) + "\n")
    except OSError as error:
        tqdm.write(f"step {entry['step']}: not noted in {out / 'metrics.jsonl'}: {error}")


def plot_metrics(out):
    """Draw OUT/loss.png: loss against tokens."""
    from matplotlib.figure import Figure

    entries = read_metrics(out)
    evaluated = [entry for entry in entries if entry.get("val_loss") is not None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([e["tokens"] for e in entries], [e["loss"] for e in entries], lw=0.6, color="0.6", label="training step")
    axis.plot([e["tokens"] for e in evaluated], [e["val_loss"] for e in evaluated], "k.-", label="validation")
    axis.set(xlabel="tokens", ylabel="loss (nats per token)")
    axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    write_file(out / "loss.png", picture.getvalue())


def show(out, model, tokenizer, step, seed):
    """Draw OUT/loss.png, and add what the model writes from nothing to OUT/samples.txt."""
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(seed)
    n_new = min(100, model.config.context_length - 1)
    tokens = generate(model, [tokenizer.eot_token], n_new, temperature=0.8, top_k=50, generator=generator)
    sample = f"--- step {step}\n{tokenizer.decode(tokens[0, 1:].tolist())}\n"
    file = out / "samples.txt"
    try:
        write_file(file, (file.read_bytes() if file.is_file() else b"") + sample.encode())
        plot_metrics(out)
    except OSError as error:
        tqdm.write(f"step {step}: {error}")


# ---- the run

LARGEST = 2**63  # no number of a command line reaches it; infinity and NaN are not below it


def amount(text):
    """A number of at least 1, such as 500000, 20M or 2.5B."""
    match = re.fullmatch(r"([0-9][0-9_.]*)([KMB]?)", text.upper())
    try:
        number = float(match[1].replace("_", "")) * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2]]
        if 1 <= number < LARGEST:
            return int(number)
    except (TypeError, ValueError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1, such as 500000, 20M or 2.5B")


def number(kind, least, below=LARGEST):
    """A type for argparse: an int or float (`kind`), at least `least` and less than `below`."""

    def parse(text):
        try:
            if least <= kind(text) < below:
                return kind(text)
        except ValueError:
            pass
        whole = "whole " * (kind is int)
        raise argparse.ArgumentTypeError(f"{text!r} is not a {whole}number of at least {least} and below {below:,}")

    return parse


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=folder_name, required=True, help="a folder that prepare_corpus.py wrote")
    add("--out", type=folder_name, required=True, help="the folder of this run")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out; start if there is none")
    add("--model", choices=GPT2_CONFIGS, help="one of GPT-2's sizes; or give --layers, --heads and --width")
    add("--layers", type=number(int, 1))
    add("--heads", type=number(int, 1))
    add("--width", type=number(int, 1))
    add("--context", type=number(int, 1), help="tokens that the model sees (default 1024)")
    add("--dropout", type=number(float, 0, 1), default=0.0)
    add("--tokens", type=amount, required=True, help="how many tokens to train on in all, such as 2.5B")
    add("--tokens-per-step", type=amount, help="over all processes (default: one --batch for each process)")
    add("--batch", type=number(int, 1), default=8, help="windows that a process computes at a time (default 8)")
    add("--optimizer", choices=["adamw", "muon"], default="adamw")
    add("--lr", type=number(float, 0), default=6e-4, help="highest learning rate (default 6e-4)")
    add("--min-lr", type=number(float, 0), help="the rate at the end (default: a tenth of --lr)")
    add("--warmup", type=number(int, 0), help="steps to reach --lr (default: 2 in 100)")
    add("--weight-decay", type=number(float, 0), default=0.1)
    add("--clip", type=number(float, 0), default=1.0, help="largest norm of the gradient; 0: any")
    add("--seed", type=number(int, 0, 2**32), default=0)
    add("--compile", action="store_true", help="torch.compile the loss and its gradient")
    add("--recompute", action="store_true", help="activation checkpointing: less memory, about a third more work")
    add("--fsdp", action="store_true", help="with torchrun: share weights and optimizer state out (FSDP2)")
    add("--eval-every", type=number(int, 1), default=200, help="steps (default 200)")
    add("--eval-windows", type=number(int, 1), default=128, help="windows of the validation split (default 128)")
    add("--checkpoint-minutes", type=number(float, 0), default=10.0)
    add("--keep", type=number(int, 1), default=2, help="checkpoints to keep (default 2)")
    add("--peak-tflops", type=number(float, 1e-3),
        help="the device's peak, for the utilisation (MFU), where it is not known here")  # fmt: skip
    args = parser.parse_args(argv)
    sizes = (args.layers, args.heads, args.width)
    if args.model and any(sizes) or not args.model and not all(sizes):
        parser.error("give either --model, or all of --layers, --heads and --width")
    args.min_lr = args.lr / 10 if args.min_lr is None else args.min_lr
    return args


def model_config(args, vocab_size):
    if args.model:
        config = replace(GPT2_CONFIGS[args.model], vocab_size=vocab_size, drop_rate=args.dropout)
        return replace(config, context_length=args.context or config.context_length)
    return GPTConfig(vocab_size, args.context or 1024, args.width, args.heads, args.layers, args.dropout)


def count_steps(args, context_length, world):
    """(steps in all, tokens in a step). Raises SystemExit where the numbers do not fit together."""
    one_batch = args.batch * context_length * world
    per_step = args.tokens_per_step or one_batch
    if per_step % one_batch:
        fits = max(1, round(per_step / one_batch)) * one_batch
        raise SystemExit(f"--tokens-per-step {per_step} is no multiple of {one_batch} (--batch {args.batch} x context "
                         f"{context_length} x {world} processes); {fits} would be")  # fmt: skip
    if args.tokens < per_step:
        raise SystemExit(f"--tokens {args.tokens} is less than one step of {per_step}")
    return args.tokens // per_step, per_step


@contextlib.contextmanager
def locked(out):
    """OUT, which is made if need be, for this process alone; the lock ends with the process, however that ends."""
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / "pretrain.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SystemExit(f"another pretrain.py is at work in {out}") from None
    try:
        yield
    finally:
        lock.release()


def write_file(file, content):
    """Write a file atomically. Raises OSError that names it."""
    with write_atomically(file) as part:
        part.write_bytes(content)


def note_settings(args, config, manifest):
    """Write OUT/settings.json; where the run was begun before, say what is different now."""
    file = args.out / "settings.json"
    now = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    number_format = str(autocast_dtype(get_device()) or torch.float32).removeprefix("torch.")
    now |= {"config": asdict(config), "torch": torch.__version__, "number_format": number_format}
    now["corpus"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    try:
        before = now | json.loads(file.read_bytes()) if file.is_file() else now
    except (ValueError, TypeError, RecursionError):
        print(f"{file} is damaged and is written anew; what has changed since the last start is not known")
        before = now
    for name in sorted(now.keys() - {"resume", "out", "data"}):
        if before[name] != now[name]:
            print(f"changed since the last start: {name} was {before[name]}, is {now[name]}")
    write_file(file, (json.dumps(now, indent=1) + "\n").encode())


def tidy(out, steps_done):
    """Take from OUT what an earlier run left beyond step `steps_done`: metrics, samples, half-written checkpoints."""
    for file in (out / "checkpoints").glob(f"step_{'[0-9]' * 8}.safetensors.part"):
        file.unlink()
    file, entries = out / "metrics.jsonl", read_metrics(out)
    for row, line in enumerate(file.read_bytes().splitlines() if file.is_file() else [], 1):
        if parse_entry(line) is None:
            print(f"{file}: line {row} is no entry of a run and is left out: {line[:60]!r}")
    kept = [json.dumps(entry) + "\n" for entry in entries if entry["step"] <= steps_done]
    write_file(file, "".join(kept).encode())
    file = out / "samples.txt"
    samples = file.read_bytes() if file.is_file() else b""
    for heading in re.finditer(rb"^--- step ([0-9]{1,18})$", samples, re.MULTILINE):
        if int(heading[1]) > steps_done:
            write_file(file, samples[: heading.start()])
            break


def open_corpus(args):
    """(manifest, tokenizer, configuration of the model, windows of training and validation), or SystemExit."""
    try:
        manifest, folder = read_manifest(args.data), args.data / "tokenizer"
        tokenizer = with_end_of_text(load_tokenizer(folder), folder)
        config = model_config(args, tokenizer.n_vocab)
        windows = [Windows(open_shards(args.data, split), config.context_length, args.seed, split)
                   for split in ("train", "validation")]  # fmt: skip
    except (OSError, ValueError) as error:
        raise SystemExit(f"--data: {error}") from None
    return manifest, tokenizer, config, *windows


def build(args, config, processes):
    """The parts of a run, new or from the last checkpoint: model, the module that a step calls, optimizer, scaler and
    history."""
    device = processes.device
    seed_everything(args.seed)
    model = GPTModel(config)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype(device) == torch.float16)
    history, optimizer_state = History(), None
    if checkpoints_in(args.out):
        history, optimizer_state = load_newest(args.out, model, scaler, processes.rank == 0)
        if history.tokens_done != history.steps_done * args.tokens_per_step:
            raise SystemExit(f"--resume: a step had {history.tokens_done // history.steps_done} tokens, now "
                             f"{args.tokens_per_step}")  # fmt: skip
    model.to(device)
    if args.recompute:
        recompute_blocks(model)
    module = wrap(model, processes, args.batch, args.fsdp, args.compile)
    optimizer = build_optimizer(model, args.optimizer, args.lr, args.weight_decay)
    if optimizer_state:
        try:
            load_optimizer(optimizer, optimizer_state)
        except ValueError as error:
            raise SystemExit(f"--resume: the checkpoint is of another optimizer (see --optimizer): {error}") from None
    return SimpleNamespace(model=model, module=module, optimizer=optimizer, scaler=scaler, history=history)


def run_steps(args, processes, run, tokenizer, train_windows, val_windows, total_steps):
    """Steps until the last one or a signal. What they measured is noted after each, the state is saved by the clock and
    at the end."""
    rank, world, device, history = processes.rank, processes.world, processes.device, run.history
    first, peak, flops = rank == 0, peak_flops(device, args.peak_tflops), flops_per_token(run.model.config)
    val_batches = batches_of(val_windows, val_windows.evenly(args.eval_windows, world), args.batch, rank, world)
    saved_at, stopping = time.monotonic(), False
    bar = tqdm(total=total_steps, initial=history.steps_done, unit="step", disable=None if first else True)
    run.module.train()
    # patience: torchrun and the terminal may both pass Ctrl-C on
    with bar, stop_on(signal.SIGINT, signal.SIGTERM, patience=2) as stop:
        while history.steps_done < total_steps and not stopping:
            step, started = history.steps_done, time.perf_counter()
            torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # dropout too is a function of the step
            rate = learning_rate(step, total_steps, args.lr, args.warmup, args.min_lr)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            starts = train_windows.random(step, args.tokens_per_step // train_windows.context_length)
            batches = batches_of(train_windows, starts, args.batch, rank, world)
            loss_fn, clip = synchronised(len(batches)), args.clip or None
            try:
                loss, _, norm = training_step(run.module, batches, loss_fn, run.optimizer, run.scaler, clip)
            except FloatingPointError as error:
                raise SystemExit(f"step {step + 1}: {error}. {last_good(args.out)}") from None
            due = first and time.monotonic() - saved_at > 60 * args.checkpoint_minutes
            loss, stopping, due = processes.total(loss / world, len(stop), due)
            speed = args.tokens_per_step / (time.perf_counter() - started)
            history.add_step(loss, args.tokens_per_step)
            entry = {"step": history.steps_done, "tokens": history.tokens_done, "loss": round(loss, 6), "lr": rate,
                     "grad_norm": norm if np.isfinite(norm) else None, "tokens_per_s": round(speed, 1)}  # fmt: skip
            if peak:
                entry["mfu"] = round(speed * flops / (peak * world), 4)
            last = history.steps_done == total_steps or stopping
            if history.steps_done % args.eval_every == 0 or last:
                total, count = processes.total(mean_loss(run.module, val_batches, call), 1)
                if not np.isfinite(total):  # this step's update broke the weights, and nothing is saved of them
                    raise SystemExit(f"step {step + 1}: the validation loss is {total / count}; a smaller rate may "
                                     f"help. {last_good(args.out)}")  # fmt: skip
                history.add_entry(total / count)
                entry |= {"val_loss": round(total / count, 6), "memory_mb": (peak_memory(device) or 0) // 2**20}
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if first:
                note_step(args.out, entry)
            if "val_loss" in entry or due:
                whole = gather(run.model, run.optimizer)
            if "val_loss" in entry and first:
                bar.write(f"step {entry['step']:,} of {total_steps:,} | {entry['tokens']:,} tokens | loss "
                          f"{history.train_loss[-1]:.4f}, validation {entry['val_loss']:.4f} | {speed:,.0f} tokens/s")
                show(args.out, whole[0], tokenizer, entry["step"], args.seed)
            if due or last:
                saved = not first or save_run(args.out, args.keep, *whole, tokenizer, run.scaler, history)
                if last and not saved:
                    raise SystemExit("the run ends, and its last state could not be saved")
                saved_at = time.monotonic()
    if stopping:
        print(f"stopped after step {history.steps_done:,} of {total_steps:,}: --resume goes on from there")


def pretrain(args, processes, until_the_end):
    """The whole run in this process. `until_the_end` is an ExitStack for the lock of its folder."""
    world, device, first = processes.world, processes.device, processes.rank == 0
    manifest, tokenizer, config, train_windows, val_windows = open_corpus(args)
    total_steps, args.tokens_per_step = count_steps(args, config.context_length, world)
    args.warmup = total_steps // 50 if args.warmup is None else args.warmup
    if args.fsdp and (world == 1 or autocast_dtype(device) == torch.float16):
        raise SystemExit("--fsdp needs several processes (torchrun) and a device that computes in bfloat16 or float32")
    if first:
        try:
            verify_corpus(args.data)
        except (OSError, ValueError) as error:
            raise SystemExit(f"--data: {error}") from None
        until_the_end.enter_context(locked(args.out))
    if checkpoints_in(args.out) and not args.resume:
        raise SystemExit(f"{args.out} already holds a run: --resume goes on with it, another --out starts anew")
    if not checkpoints_in(args.out):
        refuse_strangers(args.out)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # for the products that stay in float32
    run = build(args, config, processes)
    print(f"{describe(device)} | {world} process{'es' * (world > 1)}{', FSDP' * args.fsdp}")
    print(f"{count_parameters(run.model):,} parameters | {total_steps:,} steps of {args.tokens_per_step:,} tokens, from"
          f" step {run.history.steps_done:,} | the corpus has {manifest['splits']['train']['tokens']:,}", flush=True)
    if first:
        note_settings(args, config, manifest)
        tidy(args.out, run.history.steps_done)
    run_steps(args, processes, run, tokenizer, train_windows, val_windows, total_steps)


def main(argv=None):
    args = parse_arguments(argv)
    with contextlib.suppress(AttributeError):  # names of any script on a terminal of any kind
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        processes = Processes()
        describe(processes.device)  # LLM_DTYPE and LLM_SCALE are read before anything is made
    except ValueError as error:
        raise SystemExit(str(error)) from None
    try:
        with (
            contextlib.redirect_stdout(sys.stdout if processes.rank == 0 else io.StringIO()),
            contextlib.ExitStack() as until_the_end,
        ):
            pretrain(args, processes, until_the_end)
        processes.total(0)  # none leaves while another still writes
    except OSError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        processes.close()


if __name__ == "__main__":
    main()
    if "LOCAL_RANK" in os.environ:  # FSDP on a CPU: at the exit a thread of PyTorch's may abort a process that is done
        sys.stdout.flush()
        os._exit(0)
