"""The loss of a language model: cross-entropy of its prediction for each next token, plain, in chunks, or as a mean.

Shapes: B batch, T tokens, D width, N rows, that is, tokens of all texts one after the other.
"""

import contextlib
import itertools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from shared.runtime import autocast_dtype, evaluating

IGNORE = -100  # a target that does not count, as in F.cross_entropy


def next_token_loss(model, inputs, targets):
    """Mean cross-entropy in nats of `model`'s prediction for every target: inputs, targets [B, T] -> [].

    Targets equal to IGNORE do not count; where none counts, the loss is 0.
    """
    logits = model(inputs).flatten(0, 1).float()  # [N, V]
    total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


def chunked_loss(model, inputs, targets, n_rows=512):
    """`next_token_loss` in less memory: there are logits of `n_rows` tokens at a time, never of all.

    They are forgotten as soon as their loss is known, and the backward pass computes them once more (activation
    checkpointing, Chen et al. 2016).
    """

    def part(hidden, targets):
        return F.cross_entropy(model.head(hidden).float(), targets, ignore_index=IGNORE, reduction="sum")

    hidden, targets = model.hidden(inputs).flatten(0, 1), targets.flatten()  # [N, D], [N]
    chunks = zip(hidden.split(n_rows), targets.split(n_rows), strict=True)
    total = sum(checkpoint(part, *chunk, use_reentrant=False) for chunk in chunks)
    return total / (targets != IGNORE).sum().clamp(min=1)


def mixed_precision(device):
    """A context in which matrix products run in the number format that `autocast_dtype` chooses for `device`."""
    dtype = autocast_dtype(device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def mean_loss(model, loader, loss_fn=next_token_loss, max_batches=None):
    """Mean loss over the batches of `loader` (at most `max_batches`), each target counted once, without dropout.

    The model goes back to the mode it was in. Raises ValueError where no target counts.
    """
    device, total, count = next(model.parameters()).device, 0.0, 0
    with evaluating(model), mixed_precision(device):
        for batch in itertools.islice(loader, max_batches):
            batch = [tensor.to(device) for tensor in batch]
            n = (batch[-1] != IGNORE).sum().item()
            total += loss_fn(model, *batch).item() * n
            count += n
    if count == 0:
        raise ValueError("there is nothing to evaluate: the loader gave no batch with a target that counts")
    return total / count
