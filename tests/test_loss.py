"""The loss: equal to PyTorch's, plain and in chunks, through whatever head there is."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from shared.gpt import GPTConfig, GPTModel
from shared.instructions import answer_loss
from shared.loss import IGNORE, chunked_loss, next_token_loss

CONFIG = GPTConfig(60, 16, 32, 4, 2)
X, Y = torch.randint(0, 60, (2, 4, 10), generator=torch.Generator().manual_seed(0))
LOSSES = {"plain": next_token_loss, "of answers": answer_loss} | {
    f"chunks of {n}": lambda model, inputs, targets, n=n: chunked_loss(model, inputs, targets, n)
    for n in (1, 7, 16, 40, 1000)
}
EVERY_LOSS = pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)


def make(**changes):
    torch.manual_seed(1)
    return GPTModel(replace(CONFIG, **changes))


class Adapted(nn.Module):
    """A head with something of its own beside it, as LoRA's or a 4-bit layer is: it can only be called."""

    def __init__(self, head):
        super().__init__()
        self.inner, self.down, self.up = head, nn.Linear(32, 2, bias=False), nn.Linear(2, 60)

    def forward(self, hidden):
        return self.inner(hidden) + self.up(self.down(hidden))


def losses_and_gradients(loss_fn, model, targets, factor=3.0):
    """Ours and PyTorch's loss, each with the gradient of all parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    theirs = F.cross_entropy(model(X).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    ours = loss_fn(model, X, targets)
    return [(loss, torch.autograd.grad(factor * loss, parameters)) for loss in (ours, theirs)]


@EVERY_LOSS
@pytest.mark.parametrize(
    ("tied", "ignored", "dtype"), list(product([True, False], [0, 7, 39], [torch.float32, torch.float64]))
)
def test_loss_and_gradients_equal_pytorchs(loss_fn, tied, ignored, dtype):
    model, targets = make(tie_weights=tied).to(dtype), Y.clone()
    targets.view(-1)[:ignored] = IGNORE
    ours, theirs = losses_and_gradients(loss_fn, model, targets)
    assert_close(ours[0], theirs[0].float())  # the loss itself is in float32
    assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


@EVERY_LOSS
def test_where_no_target_counts_the_loss_and_its_gradient_are_0(loss_fn):
    model = make()
    loss = loss_fn(model, X, torch.full_like(Y, IGNORE))
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in model.parameters())


@EVERY_LOSS
def test_a_wrapped_head_is_seen(loss_fn):
    model = make()
    plain = loss_fn(model, X, Y)
    model.head = Adapted(model.head)
    ours, theirs = losses_and_gradients(loss_fn, model, Y)
    assert_close(ours[0], theirs[0])
    assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-6)
    assert abs(ours[0] - plain) > 1e-3
    loss_fn(model, X, Y).backward()
    assert model.head.down.weight.grad.abs().max() > 0


@EVERY_LOSS
def test_a_frozen_head_gets_no_gradient(loss_fn):
    model = make(tie_weights=False)
    model.head.weight.requires_grad_(False)
    loss_fn(model, X, Y).backward()
    assert model.head.weight.grad is None and model.token_embedding.weight.grad is not None


@EVERY_LOSS
def test_only_the_head_learns_where_the_rest_is_frozen(loss_fn):
    model = make(tie_weights=False).requires_grad_(False)
    model.head.requires_grad_(True)
    ours, theirs = losses_and_gradients(loss_fn, model, Y)
    assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


@EVERY_LOSS
def test_hopeless_and_broken_models(loss_fn):
    model = make(tie_weights=False)
    model.head.weight.data *= 10_000  # where the probability itself is 0 in float32
    ours, theirs = losses_and_gradients(loss_fn, model, Y)
    assert theirs[0] > 500
    assert_close(ours[0], theirs[0])
    for mine, reference in zip(ours[1], theirs[1], strict=True):  # each in size, for single numbers nearly cancel
        assert (mine - reference).norm() <= 1e-4 * reference.norm()
    model.head.weight.data[3, 3] = torch.nan
    assert loss_fn(model, X, Y).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_16_bits_are_summed_up_in_32(dtype):
    model = make().to(dtype)
    hidden = model.hidden(X).flatten(0, 1)
    expected = F.cross_entropy(model.head(hidden).double(), Y.flatten()).float()
    for loss in (next_token_loss(model, X, Y), answer_loss(model, X, Y), chunked_loss(model, X, Y, 7)):
        assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss_fn", [next_token_loss, LOSSES["chunks of 16"]])
def test_the_compiled_loss_equals_the_eager_one(loss_fn):
    model = make()
    grads = [torch.autograd.grad(f(model, X, Y), list(model.parameters()))
             for f in (loss_fn, torch.compile(loss_fn, backend="aot_eager"))]  # fmt: skip
    assert_close(*grads)


def test_chunks_never_hold_all_logits():
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, (list, tuple)) else [out]) if torch.is_tensor(t))
            return out

    model = GPTModel(GPTConfig(5000, 64, 8, 1, 1))
    tokens = torch.randint(0, 5000, (32, 64))
    with Watch():
        chunked_loss(model, tokens, tokens, 64).backward()
    assert max(sizes) == 64 * 5000
    sizes.clear()
    with Watch():
        next_token_loss(model, tokens, tokens).backward()
    assert max(sizes) == 32 * 64 * 5000


def test_without_gradients_the_head_is_computed_once():
    model, products = make(), []
    model.head.register_forward_hook(lambda *_: products.append(1))
    with torch.no_grad():
        next_token_loss(model, X, Y)
        assert len(products) == 1
        chunked_loss(model, X, Y, 10)
    assert len(products) == 1 + 4
