"""Training: loss, optimizer, schedule, loop, checkpoint and resume, loss plot.

Shapes: B batch, T tokens, D width, V vocabulary, N = B * T.
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from shared.runtime import autocast_dtype

IGNORE = -100  # a target that does not count, as in F.cross_entropy


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` against `targets`, without ever holding all logits.

    hidden [N, D], weight [V, D], targets [N] (IGNORE does not count) -> loss []. The logits of a few rows at a time
    give their share of the loss and, at once, of the gradient (softmax minus one-hot, times 1/N): [chunk, V] instead
    of [N, V] in float32. The idea is that of Liger Kernel (Hsu et al. 2024) and of Cut Your Losses (Wijmans et al.
    2024).
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        h_all, w = (hidden.to(dtype), weight.to(dtype)) if dtype else (hidden, weight)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight) if need_weight else None
        count = (targets != IGNORE).sum().clamp(min=1)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # The same memory serves all chunks. Rows whose length is a multiple of 64 make the three products up to half as
        # fast again on a CPU, so a vocabulary of 50,257 is filled up with logits of -inf, that is, probabilities of 0.
        V = len(w)
        logits = w.new_empty(min(chunk, len(targets)), -(-V // 64) * 64)
        probs = logits if w.dtype == torch.float32 else torch.empty_like(logits, dtype=torch.float32)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            h, t = h_all[rows], targets[rows]
            valid, safe = (t != IGNORE)[:, None], t.clamp(min=0)[:, None]
            scores = logits[: len(h)]
            scores[:, V:] = -torch.inf
            torch.mm(h, w.T, out=scores[:, :V])
            log_probs = torch.log_softmax(scores, -1, dtype=torch.float32, out=probs[: len(h)])
            chosen = log_probs.gather(1, safe)
            loss -= (chosen * valid).sum()
            if not (need_hidden or need_weight):
                continue
            grad = log_probs.exp_().scatter_(1, safe, chosen.exp() - 1)[:, :V].to(w.dtype)
            share = (valid / count).to(w.dtype)  # [chunk, 1]: cheaper to apply to [chunk, D] than to [chunk, V]
            if need_hidden:
                d_hidden[rows] = (grad @ w) * share
            if need_weight:
                h = h * share
                d_weight.addmm_(grad.T, h) if d_weight.dtype == h.dtype else d_weight.add_(grad.T @ h)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss / count

    @staticmethod
    def backward(ctx, grad_loss):
        scaled = [None if d is None else d.mul_(grad_loss) for d in ctx.saved_tensors]  # in place: one backward only
        return *scaled, None, None


def next_token_loss(model, inputs, targets):
    """Mean cross-entropy in nats of `model`'s prediction for every target: inputs, targets [B, T] -> [].

    Targets equal to IGNORE (-100) do not count. Equal to F.cross_entropy on the logits, in less memory.
    """
    return hidden_loss(model, model.hidden(inputs).flatten(0, 1), targets.flatten())


def hidden_loss(model, hidden, targets):
    """The same from `model`'s hidden vectors, for those who choose among them: hidden [N, D], targets [N] -> []."""
    weight = model.head.weight  # [V, D]
    if not torch.is_grad_enabled():
        weight = weight.detach()  # else its gradient would be computed all the same
    apart = torch.compiler.disable(LinearCrossEntropy.apply)  # compiled, its products into ready memory become copies
    return apart(hidden, weight, targets, 512)


def evaluate(model, loader, loss_fn=next_token_loss, max_batches=None):
    """Mean loss over the batches of `loader` (at most `max_batches`), each target counted once, without dropout.

    A batch is a tuple that `loss_fn(model, *batch)` takes; its last tensor holds the targets.
    """
    device, was_training = next(model.parameters()).device, model.training
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad(), mixed_precision(device):
        for i, batch in enumerate(loader):
            if i == max_batches:
                break
            batch = [tensor.to(device) for tensor in batch]
            n = (batch[-1] != IGNORE).sum().item()
            total += loss_fn(model, *batch).item() * n
            count += n
    model.train(was_training)
    if count == 0:
        raise ValueError("there is nothing to evaluate: the loader gave no batch with a target that counts")
    return total / count


def mixed_precision(device):
    """A context in which matrix products run in the number format that `autocast_dtype` chooses for `device`."""
    dtype = autocast_dtype(device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def make_optimizer(model, lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95)):
    """AdamW (Loshchilov and Hutter 2019), fused. Only matrices decay; biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def learning_rate(step, total_steps, peak, warmup_steps=0, final=0.0):
    """The rate of a step (counted from 0): a straight line up to `peak`, then half a cosine down to `final`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class History:
    """What happened in a training run: one entry per evaluation in the lists, and how far it came."""

    step: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    train_loss: list = field(default_factory=list)  # mean over the steps since the entry before
    val_loss: list = field(default_factory=list)
    recent_losses: list = field(default_factory=list)  # of the steps since the last entry
    steps_done: int = 0
    tokens_done: int = 0
    interrupted: bool = False


def check_bounds(least, **values):
    """Raises ValueError for a value that is below `least`, infinite or not a number; None stands for no value."""
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a finite number of at least {least}")


def train(
    model, train_loader, val_loader=None, *, epochs=1, lr=4e-4, min_lr=0.0, warmup_steps=0, weight_decay=0.1, clip=1.0,
    accumulate=1, eval_every=50, eval_batches=None, loss_fn=next_token_loss, optimizer=None, seed=0, compile=False,
    checkpoint=None, checkpoint_every=None, resume=False, progress=True,
):  # fmt: skip
    """Train `model` in place for `epochs` passes over `train_loader`, and return its `History`.

    A step takes `accumulate` batches, each a tuple for `loss_fn(model, *batch)`. The rate follows `learning_rate`
    (min_lr=lr: constant after the warmup), gradients are clipped to norm `clip` (None: not). Every `eval_every` steps
    and at the end, `evaluate` averages `eval_batches` batches of `val_loader`. Epoch e is shuffled with `seed + e`:
    with `checkpoint` (a file) the state is saved every `checkpoint_every` steps and at the end, and `resume=True` goes
    on from it, bit for bit on a CPU. Ctrl-C ends the run after the current step and keeps what was learned.
    A loss that is not finite raises FloatingPointError before it can harm the weights; settings that make no sense
    raise ValueError.
    """
    check_bounds(0, lr=lr, min_lr=min_lr, warmup_steps=warmup_steps, weight_decay=weight_decay)
    check_bounds(1, accumulate=accumulate, eval_every=eval_every, eval_batches=eval_batches,
                 checkpoint_every=checkpoint_every)  # fmt: skip
    if checkpoint is None and (resume or checkpoint_every):
        raise ValueError("`resume` and `checkpoint_every` need `checkpoint`, the file of the run")
    device = next(model.parameters()).device
    for parameter in model.parameters():  # GPT-2's files give transposed views; a step is faster on copies in order
        parameter.data = parameter.data.contiguous()
    optimizer = make_optimizer(model, lr, weight_decay) if optimizer is None else optimizer
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype(device) == torch.float16)
    step_loss = compile_or_eager(loss_fn) if compile else loss_fn
    total_steps = epochs * (len(train_loader) // accumulate)
    if total_steps < 1:
        raise ValueError(f"nothing to train: {epochs} epochs of {len(train_loader)} batches, {accumulate} to a step")
    history = load_checkpoint(checkpoint, model, optimizer, scaler) if resume else History()
    bar = tqdm(total=total_steps, initial=history.steps_done, unit="step", disable=not progress, mininterval=0.5)
    model.train()
    with bar, stop_on_interrupt() as stop:
        for batches in remaining_steps(train_loader, epochs, accumulate, seed, history.steps_done):
            started = time.perf_counter()
            rate = learning_rate(history.steps_done, total_steps, lr, warmup_steps, min_lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, n_tokens = training_step(model, batches, step_loss, optimizer, scaler, clip)
            history.steps_done += 1
            history.tokens_done += n_tokens
            history.recent_losses.append(loss)
            bar.update()
            speed = n_tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            history.interrupted = bool(stop)
            if history.steps_done % eval_every == 0 or history.steps_done == total_steps or stop:
                history.step.append(history.steps_done)
                history.tokens.append(history.tokens_done)
                history.train_loss.append(sum(history.recent_losses) / len(history.recent_losses))
                history.val_loss.append(evaluate(model, val_loader, loss_fn, eval_batches) if val_loader else None)
                history.recent_losses = []
            if checkpoint_every and history.steps_done % checkpoint_every == 0:
                save_checkpoint(checkpoint, model, optimizer, scaler, history)
            if stop:
                bar.write(f"stopped after {history.steps_done} of {total_steps} steps; the model keeps what it learned")
                break
    if checkpoint:
        save_checkpoint(checkpoint, model, optimizer, scaler, history)
    return history


def training_step(model, batches, loss_fn, optimizer, scaler, clip=1.0):
    """One update from one or several batches, as if they were one: returns (loss, number of tokens read).

    Each batch weighs as much as it has targets that count, so that accumulation changes memory, not the gradient.
    Raises FloatingPointError, with the weights untouched, when the loss is not finite.
    """
    if clip is not None and not clip > 0:  # a negative one would turn the gradient round
        raise ValueError(f"clip is {clip}; it must be above 0, or None")
    device = next(model.parameters()).device
    counts = [(batch[-1] != IGNORE).sum().item() for batch in batches]
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        with mixed_precision(device):
            loss = loss_fn(model, *(tensor.to(device) for tensor in batch)) * (count / max(1, sum(counts)))
        scaler.scale(loss).backward()
        total += loss.item()
    if not math.isfinite(total):
        optimizer.zero_grad()
        raise FloatingPointError(f"the loss is {total}: the weights are kept as they were; a smaller rate may help")
    scaler.unscale_(optimizer)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return total, sum(batch[0].numel() for batch in batches)


def remaining_steps(loader, epochs, accumulate, seed, steps_done):
    """Yield the batches of each step that is still to do, in the order in which an unbroken run takes them."""
    steps_per_epoch = len(loader) // accumulate
    for epoch in range(steps_done // steps_per_epoch, epochs):
        if loader.generator is not None:
            loader.generator.manual_seed(seed + epoch)
        batches = iter(loader)
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            group = [next(batches) for _ in range(accumulate)]
            if step >= steps_done:
                yield group


@contextlib.contextmanager
def stop_on_interrupt():
    """Gives a list that is empty until Ctrl-C (or a notebook's stop button) is pressed; twice interrupts as usual."""
    stop = []

    def on_interrupt(signum, frame):
        if stop:
            raise KeyboardInterrupt
        stop.append(signum)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield stop
        return
    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


def compile_or_eager(function):
    """`torch.compile(function)`; where that does not work, one line says so and the plain function is used."""
    compiled, tried = torch.compile(function), False

    def run(*args):
        nonlocal compiled, tried
        if compiled is None:
            return function(*args)
        try:
            result, tried = compiled(*args), True
        except Exception as error:
            if tried:  # it did work before: this is an error of the computation itself
                raise
            print(f"torch.compile does not work here ({type(error).__name__}): going on without it")
            compiled = None
            return function(*args)
        return result

    return run


def checksum(tensors, state):
    """SHA-256 of a checkpoint's tensors (with names, formats and shapes) and of its `state`, a string."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_checkpoint(file, model, optimizer=None, scaler=None, history=None):
    """Write all that a run needs to go on into one safetensors file: weights, optimizer, random state, history.

    Written aside and renamed: at every moment `file` is a whole checkpoint, the old one or the new one. It carries a
    checksum of its contents.
    """
    file = Path(file)
    tensors = {f"model.{name}": tensor for name, tensor in unshared(model).items()}
    state = {"config": asdict(model.config), "history": asdict(history or History())}
    if optimizer is not None:
        optimizer_state = optimizer.state_dict()
        state["param_groups"] = optimizer_state["param_groups"]
        for i, values in optimizer_state["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    aside = file.with_name(file.name + ".partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        state = json.dumps(state)
        save_file(tensors, aside, metadata={"format": "pt", "state": state, "sha256": checksum(tensors, state)})
        with open(aside, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(aside, file)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"{file} could not be written ({error}); an older checkpoint there is untouched") from None


def read_checkpoint(file):
    """(tensors by name, state) of a file that `save_checkpoint` wrote.

    Raises FileNotFoundError when there is none, ValueError when it is not whole, down to the last bit.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        if metadata.get("sha256") != checksum(tensors, metadata.get("state", "")):
            raise ValueError("its checksum is missing or is not that of its contents")
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{file} is no whole checkpoint: {error}") from None
    return tensors, json.loads(metadata["state"])


def load_checkpoint(file, model, optimizer=None, scaler=None):
    """Read what `save_checkpoint` wrote into `model` (and optimizer, scaler, random state); returns the `History`.

    Raises FileNotFoundError when there is none, ValueError when the file is damaged or of another configuration;
    then nothing has been changed.
    """
    tensors, state = read_checkpoint(file)
    ours = asdict(model.config)
    differ = [f"{k} {state['config'].get(k)} (here {v})" for k, v in ours.items() if state["config"].get(k) != v]
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in unshared(model).items()}
    if differ or {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes:
        raise ValueError(f"{file} belongs to another model: {', '.join(differ) or 'other layers'}")
    if optimizer is not None and "param_groups" in state:
        values = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".", 2)
                values.setdefault(int(i), {})[key] = tensor
        groups = state["param_groups"]
        for group in groups:  # JSON made lists of tuples, such as AdamW's betas
            group |= {k: tuple(v) for k, v in group.items() if isinstance(v, list) and k != "params"}
        optimizer.load_state_dict({"state": values, "param_groups": groups})
    model.load_state_dict(weights, strict=False)  # a tied head is stored once
    if scaler is not None and "scaler" in state:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return History(**state["history"] | {"interrupted": False})


def unshared(model):
    """The model's state by name, each tensor once: of tied weights only the first name stays."""
    seen, tensors = set(), {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor
    return tensors


def plot_losses(history, title=None):
    """Training and validation loss against steps, with the perplexity on the right-hand axis."""
    import matplotlib.pyplot as plt  # not above: it takes most of a second, which programs without a plot can save

    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.plot(history.step, history.train_loss, "-", label="training")
    if any(value is not None for value in history.val_loss):
        axis.plot(history.step, history.val_loss, "--", label="validation")
    axis.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axis.legend()
    right = axis.secondary_yaxis("right", functions=(np.exp, lambda x: np.log(np.maximum(x, 1e-9))))
    right.set_ylabel("perplexity")
    figure.tight_layout()
    plt.show()
