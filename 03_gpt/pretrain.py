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
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "03_gpt")]

from prepare_corpus import open_shards, read_manifest, verify_corpus  # noqa: E402

from shared.checkpoints import save_model  # noqa: E402
from shared.generation import generate  # noqa: E402
from shared.gpt import GPT2_CONFIGS, GPTConfig, GPTModel, count_parameters  # noqa: E402
from shared.runtime import autocast_dtype, describe, get_device, peak_memory, seed_everything  # noqa: E402
from shared.tokenizer import load_tokenizer  # noqa: E402
from shared.training import (  # noqa: E402
    History,
    compile_or_eager,
    evaluate,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    next_token_loss,
    read_checkpoint,
    save_checkpoint,
    training_step,
)

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


class Optimizers:
    """One or two optimizers that look like one to `training_step` and to a checkpoint.

    Clips the gradients to norm `clip` before a step (None: not) and keeps their norm, as it was, in `grad_norm`.
    """

    def __init__(self, parts, clip=1.0):
        self.parts, self.clip, self.grad_norm = parts, clip, None

    @property
    def param_groups(self):
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.grad_norm = float(norm.full_tensor() if is_shared(norm) else norm)
        if not np.isfinite(self.grad_norm):
            raise FloatingPointError(f"the gradient's norm is {self.grad_norm}: the weights are kept as they were")
        if self.clip is not None and self.grad_norm > self.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
        for part in self.parts:
            part.step()

    def state_dict(self):
        """The states of all parts, with the parameters counted through."""
        state, groups = {}, []
        for part, first in self._numbered():
            own = part.state_dict()
            state |= {first + i: values for i, values in own["state"].items()}
            groups += [group | {"params": [first + i for i in group["params"]]} for group in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, whole):
        if len(whole["param_groups"]) != len(self.param_groups):
            raise ValueError("the checkpoint was made with another optimizer (see --optimizer)")
        groups = iter(whole["param_groups"])
        for part, first in self._numbered():
            own = [next(groups) for _ in part.param_groups]
            numbers = [i for group in own for i in group["params"]]
            part.load_state_dict({
                "state": {i - first: whole["state"][i] for i in numbers if i in whole["state"]},
                "param_groups": [group | {"params": [i - first for i in group["params"]]} for group in own],
            })  # fmt: skip

    def _numbered(self):
        first = 0
        for part in self.parts:
            yield part, first
            first += sum(len(group["params"]) for group in part.param_groups)


def build_optimizer(model, name, lr, weight_decay, clip):
    """AdamW for all, or ("muon") Muon for the matrices of the blocks and AdamW for the rest.

    Muon (Jordan et al. 2024) makes each matrix's update orthogonal; scaled as by Liu et al. 2025 it takes AdamW's rate.
    """
    if name == "adamw":
        return Optimizers([make_optimizer(model, lr, weight_decay)], clip)
    if autocast_dtype(next(model.parameters()).device) is None:
        torch.optim._muon._zeropower_via_newtonschulz = orthogonalize
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    for p in matrices:
        p.requires_grad_(False)  # so that make_optimizer leaves them out
    adamw = make_optimizer(model, lr, weight_decay)
    for p in matrices:
        p.requires_grad_(True)
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return Optimizers([muon, adamw], clip)


def orthogonalize(matrix, coefficients, n_steps, eps):
    """Muon's Newton-Schulz iteration in the matrix's own format: [m, n] with all singular values near 1.

    PyTorch's works in bfloat16. Where that is only emulated, it takes 25 times as long as this (2-core CPU, 9 M
    parameters: 22 s a step).
    """
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(n_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


# ---- processes


class LossModule(nn.Module):
    """A module whose forward pass is the loss, which is what DDP and FSDP can wrap: inputs, targets [B, T] -> []."""

    def __init__(self, model, compiled=False):
        super().__init__()
        self.model = model
        self.loss_fn = compile_or_eager(next_token_loss) if compiled else next_token_loss

    def forward(self, inputs, targets):
        # evaluation is not compiled: it would be compiled a second time, for other settings
        return (self.loss_fn if self.training else next_token_loss)(self.model, inputs, targets)


def call(module, inputs, targets):
    return module(inputs, targets)


def synchronised(n_batches):
    """A loss function for one `training_step`: with DDP, gradients travel with the last of its batches only."""
    done = 0

    def loss_fn(module, inputs, targets):
        nonlocal done
        done += 1
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = done == n_batches
        return module(inputs, targets)

    return loss_fn


def recompute_blocks(model):
    """Activation checkpointing (Chen et al. 2016): the backward pass computes the inside of each block once more."""
    for block in model.blocks:
        block.forward = partial(recompute, block.forward, use_reentrant=False)


def wrap(model, processes, fsdp=False, compiled=False):
    """The module that a step calls: DDP where there are several processes, or FSDP2, which gives each process a share
    of weights, gradients and optimizer state."""
    device, module = processes.device, LossModule(model, compiled)
    if fsdp:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes a second or two

        mesh = dist.init_device_mesh(device.type, (processes.world,))
        # On a CPU, autocast alone rounds: its layer_norm wants input and weight in one format.
        param_dtype = autocast_dtype(device) if device.type == "cuda" else None
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, cast_forward_inputs=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh)  # the head stays in float32: LinearCrossEntropy adds up its gradient
    if processes.world > 1:
        if compiled:
            torch._dynamo.config.optimize_ddp = False  # it cannot split a graph that holds LinearCrossEntropy
        return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)
    return module


def is_shared(tensor):
    """Whether each process holds only a share of it."""
    return hasattr(tensor, "full_tensor")


def gather(model, optimizer):
    """(model, optimizer) with all their numbers in this process, for a checkpoint. All processes must take part."""
    if not any(map(is_shared, model.parameters())):
        return model, optimizer

    def whole(value):
        return value.full_tensor().cpu() if is_shared(value) else value

    with torch.device("meta"):
        gathered = GPTModel(model.config)
    gathered.load_state_dict({name: whole(value) for name, value in model.state_dict().items()}, assign=True)
    if model.config.tie_weights:
        gathered.head.weight = gathered.token_embedding.weight
    state = optimizer.state_dict()
    state["state"] = {i: {name: whole(v) for name, v in values.items()} for i, values in state["state"].items()}
    return gathered, SimpleNamespace(state_dict=lambda: state)


def load_optimizer(optimizer, state):
    """Load a gathered optimizer state; of sharded parameters each process keeps its share."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def share(value, p):
        if is_shared(p) and value.shape == p.shape:
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
        return value

    values = {i: {name: share(v, parameters[i]) for name, v in vs.items()} for i, vs in state["state"].items()}
    optimizer.load_state_dict(state | {"state": values})


class Processes:
    """This process among those that torchrun started (or alone): its number, its device, and sums over all."""

    def __init__(self):
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = get_device()
        if self.world > 1:
            if self.device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        if self.device.index is not None:
            torch.cuda.set_device(self.device)

    def total(self, *values):
        """The sum of each number over all processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def close(self):
        if self.world > 1:
            dist.destroy_process_group()


@contextlib.contextmanager
def stop_on_signals():
    """Gives a list that is empty until Ctrl-C or SIGTERM comes; the third signal ends the process as usual."""
    stop = []

    def on_signal(number, frame):
        stop.append(number)
        if len(stop) > 2:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# ---- checkpoints


def checkpoints_in(out):
    """The checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("step_*.safetensors"))


def newest_whole(out):
    """The newest checkpoint whose checksum is right, or None."""
    for file in reversed(checkpoints_in(out)):
        with contextlib.suppress(ValueError):
            read_checkpoint(file)
            return file
    return None


def load_newest(out, model, scaler, first=True):
    """Load the newest checkpoint that is whole into `model`: (history, state of the optimizer).

    Those that are not whole get the ending .damaged from the first process, so that none counts as the last.
    """
    state, damaged = {}, []
    for file in reversed(checkpoints_in(out)):
        try:
            history = load_checkpoint(file, model, SimpleNamespace(load_state_dict=state.update), scaler)
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
        save_checkpoint(file, model, optimizer, scaler, history)
        for old in checkpoints_in(out)[:-keep]:
            old.unlink()
        save_model(model, tokenizer, out)
        return True
    except (OSError, SafetensorError) as error:
        print(f"step {history.steps_done}: not saved: {error}")
        return False


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


def write_sample(out, model, tokenizer, step, seed):
    """Add what the model writes from nothing to OUT/samples.txt."""
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(seed)
    n_new = min(100, model.config.context_length - 1)
    tokens = generate(model, [tokenizer.eot_token], n_new, temperature=0.8, top_k=50, generator=generator)
    sample = f"--- step {step}\n{tokenizer.decode(tokens[0, 1:].tolist())}\n"
    file = out / "samples.txt"
    write_file(file, (file.read_bytes() if file.is_file() else b"") + sample.encode())


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
        bounds = f"at least {least}" + f" and below {below:,}" * (below < LARGEST)
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole' * (kind is int)} number of {bounds}")

    return parse


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a folder that prepare_corpus.py wrote")
    add("--out", type=Path, required=True, help="the folder of this run")
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
    """Write aside, then rename: at every moment there is a whole file. Raises OSError that names it."""
    aside = file.with_name(f"{file.name}.partial")
    try:
        aside.write_bytes(content)
        os.replace(aside, file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"{file} could not be written ({error})") from None


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
    for file in (out / "checkpoints").glob("step_*.safetensors.partial"):
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


def note(history, val_loss):
    """An entry in the history that the checkpoint carries, as `shared.training.train` makes it."""
    history.step.append(history.steps_done)
    history.tokens.append(history.tokens_done)
    history.train_loss.append(sum(history.recent_losses) / len(history.recent_losses))
    history.val_loss.append(val_loss)
    history.recent_losses = []


def open_corpus(args):
    """(manifest, tokenizer, configuration of the model, windows of training and validation), or SystemExit."""
    try:
        manifest, tokenizer = read_manifest(args.data), load_tokenizer(args.data / "tokenizer")
        config = model_config(args, tokenizer.n_vocab)
        windows = [Windows(open_shards(args.data, split), config.context_length, args.seed, split)
                   for split in ("train", "validation")]  # fmt: skip
    except (OSError, ValueError) as error:
        raise SystemExit(f"--data: {error}") from None
    return manifest, tokenizer, config, *windows


def build(args, config, processes):
    """(model, the module that a step calls, optimizer, scaler, history), new or from the last checkpoint."""
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
    module = wrap(model, processes, args.fsdp, args.compile)
    optimizer = build_optimizer(model, args.optimizer, args.lr, args.weight_decay, args.clip or None)
    if optimizer_state:
        try:
            load_optimizer(optimizer, optimizer_state)
        except ValueError as error:
            raise SystemExit(f"--resume: {error}") from None
    return model, module, optimizer, scaler, history


def pretrain(args, processes, until_the_end):
    """The whole run in this process. `until_the_end` is an ExitStack for the lock of its folder."""
    rank, world, device, first = processes.rank, processes.world, processes.device, processes.rank == 0
    manifest, tokenizer, config, train_windows, val_windows = open_corpus(args)
    total_steps, args.tokens_per_step = count_steps(args, config.context_length, world)
    warmup = total_steps // 50 if args.warmup is None else args.warmup
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
    if not checkpoints_in(args.out) and (args.out / "model.safetensors").exists():
        raise SystemExit(f"{args.out} holds a model.safetensors, but no checkpoint to go on from: give another --out")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # for the products that stay in float32
    model, module, optimizer, scaler, history = build(args, config, processes)
    n_parameters = count_parameters(model)

    print(f"{describe(device)} | {world} process{'es' * (world > 1)}{', FSDP' * args.fsdp}")
    print(f"{n_parameters:,} parameters | {total_steps:,} steps of {args.tokens_per_step:,} tokens, "
          f"from step {history.steps_done:,} | the corpus has {manifest['splits']['train']['tokens']:,}", flush=True)
    if first:
        note_settings(args, config, manifest)
        tidy(args.out, history.steps_done)
    peak, flops = peak_flops(device, args.peak_tflops), flops_per_token(config)
    val_batches = batches_of(val_windows, val_windows.evenly(args.eval_windows, world), args.batch, rank, world)
    saved_at, stopping = time.monotonic(), False
    bar = tqdm(total=total_steps, initial=history.steps_done, unit="step", disable=None if first else True)
    module.train()
    with bar, stop_on_signals() as stop:
        while history.steps_done < total_steps and not stopping:
            step, started = history.steps_done, time.perf_counter()
            torch.manual_seed((args.seed * 1_000_003 + step) * world + rank)  # dropout too is a function of the step
            rate = learning_rate(step, total_steps, args.lr, warmup, args.min_lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            starts = train_windows.random(step, args.tokens_per_step // config.context_length)
            batches, optimizer.grad_norm = batches_of(train_windows, starts, args.batch, rank, world), None
            try:
                loss, _ = training_step(module, batches, synchronised(len(batches)), optimizer, scaler, clip=None)
            except FloatingPointError as error:
                good = newest_whole(args.out) or "none yet"
                raise SystemExit(f"step {step + 1}: {error}. The last good checkpoint: {good}") from None
            due = first and time.monotonic() - saved_at > 60 * args.checkpoint_minutes
            loss, stopping, due = processes.total(loss / world, len(stop), due)
            speed = args.tokens_per_step / (time.perf_counter() - started)
            history.steps_done += 1
            history.tokens_done += args.tokens_per_step
            history.recent_losses.append(loss)
            entry = {"step": history.steps_done, "tokens": history.tokens_done, "loss": round(loss, 6), "lr": rate,
                     "grad_norm": optimizer.grad_norm, "tokens_per_s": round(speed, 1)}  # fmt: skip
            if peak:
                entry["mfu"] = round(speed * flops / (peak * world), 4)
            last = history.steps_done == total_steps or stopping
            if history.steps_done % args.eval_every == 0 or last:
                total, count = processes.total(evaluate(module, val_batches, call), 1)
                entry |= {"val_loss": round(total / count, 6), "memory_mb": (peak_memory(device) or 0) // 2**20}
                note(history, total / count)
            if first:
                try:
                    with open(args.out / "metrics.jsonl", "a", encoding="utf-8") as metrics:
                        metrics.write(json.dumps(entry) + "\n")
                except OSError as error:
                    bar.write(f"step {entry['step']}: not noted in {args.out / 'metrics.jsonl'}: {error}")
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if "val_loss" in entry or due:
                gathered = gather(model, optimizer)
            if "val_loss" in entry and first:
                bar.write(f"step {entry['step']:,} of {total_steps:,} | {entry['tokens']:,} tokens | loss "
                          f"{history.train_loss[-1]:.4f}, validation {entry['val_loss']:.4f} | {speed:,.0f} tokens/s")
                try:
                    write_sample(args.out, gathered[0], tokenizer, entry["step"], args.seed)
                    plot_metrics(args.out)
                except OSError as error:
                    bar.write(f"step {entry['step']}: {error}")
            if due or last:
                saved = not first or save_run(args.out, args.keep, *gathered, tokenizer, scaler, history)
                if last and not saved:
                    raise SystemExit("the run ends, and its last state could not be saved")
                saved_at = time.monotonic()
    if stopping:
        print(f"stopped after step {history.steps_done:,} of {total_steps:,}: --resume goes on from there")


def main(argv=None):
    args = parse_arguments(argv)
    processes = Processes()
    try:
        with (
            contextlib.redirect_stdout(sys.stdout if processes.rank == 0 else io.StringIO()),
            contextlib.ExitStack() as until_the_end,
        ):
            pretrain(args, processes, until_the_end)
    except OSError as error:
        raise SystemExit(str(error)) from None
    finally:
        processes.close()


if __name__ == "__main__":
    main()
