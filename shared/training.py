"""Training: optimizer, schedule, step, loop, loss plot.

A batch is a tuple of tensors that `loss_fn(model, *batch)` takes; the last one holds the targets.
"""

import math
import signal
import time

import torch
from tqdm import tqdm

from shared.loss import IGNORE, mean_loss, mixed_precision, next_token_loss
from shared.resume import History, load_state, save_state
from shared.runtime import autocast_dtype, stop_on


def make_optimizer(model, lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95)):
    """AdamW (Loshchilov and Hutter 2019), fused. Only matrices decay; biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no weight of the model trains: all are frozen, as after merge_lora")
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


def check_bounds(least, kind, **values):
    """Raises ValueError for a value that is no `kind` of number (int, or float), below `least`, infinite or NaN."""
    for name, value in values.items():
        if not isinstance(value, (int, kind)) or not least <= value < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a finite {kind.__name__} of at least {least}")


def train(
    model, train_loader, val_loader=None, *, epochs=1, lr=4e-4, min_lr=0.0, warmup_steps=0, weight_decay=0.1, clip=1.0,
    accumulate=1, eval_every=50, loss_fn=next_token_loss, seed=0, checkpoint=None, resume=False, progress=True,
):  # fmt: skip
    """Train `model` in place for `epochs` passes over `train_loader`, and return its `History`.

    A step takes `accumulate` batches. The rate follows `learning_rate` (min_lr=lr: constant after the warmup),
    gradients are clipped to norm `clip` (None: not). Every `eval_every` steps and at the end, the mean loss of
    `val_loader` is taken and, with `checkpoint` (a file), the state of the run is saved; `resume=True` goes on from it,
    bit for bit on a CPU. Epoch e is shuffled with `seed + e`. Ctrl-C ends the run after the current step and keeps what
    was learned. A loss or gradient that is not finite raises FloatingPointError before it can harm the weights;
    settings that make no sense raise ValueError.
    """
    check_bounds(0, float, lr=lr, min_lr=min_lr, warmup_steps=warmup_steps, weight_decay=weight_decay)
    check_bounds(0, int, epochs=epochs)
    check_bounds(1, int, accumulate=accumulate, eval_every=eval_every)
    if resume and checkpoint is None:
        raise ValueError("`resume` needs `checkpoint`, the file of the run")
    total_steps = epochs * (len(train_loader) // accumulate)
    if total_steps < 1:
        raise ValueError(f"nothing to train: {epochs} epochs of {len(train_loader)} batches, {accumulate} to a step")
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, lr, weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype(device) == torch.float16)
    history = load_state(checkpoint, model, optimizer, scaler) if resume else History()
    bar = tqdm(total=total_steps, initial=history.steps_done, unit="step", disable=not progress, mininterval=0.5)
    model.train()
    with bar, stop_on(signal.SIGINT) as stop:
        for batches in remaining_steps(train_loader, epochs, accumulate, seed, history.steps_done):
            started = time.perf_counter()
            rate = learning_rate(history.steps_done, total_steps, lr, warmup_steps, min_lr)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, n_tokens, _ = training_step(model, batches, loss_fn, optimizer, scaler, clip)
            history.add_step(loss, n_tokens)
            history.interrupted = bool(stop)
            bar.update()
            speed = n_tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if history.steps_done % eval_every == 0 or history.steps_done == total_steps or history.interrupted:
                history.add_entry(mean_loss(model, val_loader, loss_fn) if val_loader else None)
                if checkpoint:
                    save_state(checkpoint, model, optimizer, scaler, history)
            if history.interrupted:
                bar.write(f"stopped after {history.steps_done} of {total_steps} steps; the model keeps what it learned")
                break
    return history


def training_step(model, batches, loss_fn, optimizer, scaler, clip=1.0):
    """One update from one or several batches, as if they were one: (loss, number of tokens, norm of the gradient).

    Each batch weighs as much as it has targets that count, so that accumulation changes memory, not the gradient. The
    norm is that before clipping to `clip` (None: not clipped). Raises FloatingPointError, with the weights untouched,
    when the loss or the gradient is not finite.
    """
    optimizer.zero_grad()  # of a step that was broken off
    device = next(model.parameters()).device
    counts = [(batch[-1] != IGNORE).sum().item() for batch in batches]
    total = 0.0
    for batch, count in zip(batches, counts, strict=True):
        with mixed_precision(device):
            loss = loss_fn(model, *(tensor.to(device) for tensor in batch)) * (count / max(1, sum(counts)))
        scaler.scale(loss).backward()
        total += loss.item()
    return total, sum(batch[0].numel() for batch in batches), take_step(total, optimizer, scaler, clip)


def take_step(loss, optimizer, scaler, clip=1.0):
    """Clip the gradient that is there to norm `clip` (None: not) and update the weights: the norm before clipping.

    Raises FloatingPointError, with the weights untouched, when `loss`, a number, or the gradient is not finite.
    """
    if clip is not None and not clip > 0:  # a negative one would turn the gradient round
        raise ValueError(f"clip is {clip}; it must be above 0, or None")
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf).item()
    if not math.isfinite(loss) or not (math.isfinite(norm) or scaler.is_enabled()):  # a scaler skips such a gradient
        optimizer.zero_grad()
        raise FloatingPointError(f"the loss is {loss} and the gradient's norm is {norm}: the weights are kept as they "
                                 "were; a smaller rate may help")  # fmt: skip
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return norm


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


def plot_losses(history, baseline=None, title=None):
    """Training and validation loss against steps, a `baseline` as a dashed line; the perplexity on the right.

    `history` has `step`, `train_loss` and `val_loss` (whose values may be None); all losses in nats per token.
    """
    import matplotlib.pyplot as plt  # not above: it takes most of a second, which programs without a plot can save

    _, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    axis.plot(history.step, history.train_loss, color="#1f6fb5", label="training")
    if any(value is not None for value in history.val_loss):
        axis.plot(history.step, history.val_loss, color="#b86e00", label="validation")
    if baseline is not None:
        axis.axhline(baseline, color="black", linestyle="--", label=f"counted bigrams, {baseline:.2f}")
    axis.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    right = axis.secondary_yaxis("right")
    right.yaxis.set_major_formatter(lambda loss, _: f"{math.exp(loss):,.{1 if loss < 3 else 0}f}")
    right.set_ylabel("perplexity")
    plt.show()
