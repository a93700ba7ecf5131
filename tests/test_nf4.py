"""NF4 and Linear4bit: levels, codes and scales equal to bitsandbytes, gradients to autograd, sizes as computed."""

import copy

import bitsandbytes.functional as reference
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from shared import nf4
from shared.gpt import GPTConfig, GPTModel
from shared.llama import LlamaConfig, LlamaModel

MODELS = {
    "gpt": lambda: GPTModel(GPTConfig(97, 24, emb_dim=64, n_heads=4, n_layers=2)),
    "llama": lambda: LlamaModel(LlamaConfig(97, 24, 64, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=128)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(1)
    return MODELS[request.param]().eval()


def weights():
    torch.manual_seed(0)
    wide = torch.randn(64, 128) * torch.logspace(-4, 1, 128)
    return {"small": 0.02 * torch.randn(192, 576), "plain": torch.randn(1000, 999), "wide": wide,
            "odd": torch.randn(13, 7), "tiny numbers": 1e-30 * torch.randn(8, 64)}  # fmt: skip


def test_levels_are_those_of_bitsandbytes():
    assert torch.equal(nf4.LEVELS, reference.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(nf4.SCALE_LEVELS, reference.create_dynamic_map())
    assert (nf4.LEVELS < 0).sum() == 7 and (nf4.LEVELS > 0).sum() == 8


@pytest.mark.parametrize("name", weights())
def test_codes_and_scales_equal_bitsandbytes(name):
    weight = weights()[name]
    packed, state = reference.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    codes, fine, coarse = nf4.quantise_nf4(weight)
    assert torch.equal(codes[: packed.numel()], packed.flatten())
    _, absmax = nf4.quantise_blocks(weight, nf4.LEVELS, 64)
    assert torch.equal(absmax, state.absmax)
    # The scales, by bitsandbytes' operator for numbers that its own CPU kernel does not know: that kernel looks 32-bit
    # numbers up on a grid of 65,536 places, and so misses the nearest of the levels close to zero now and then.
    centred = (absmax - absmax.mean()).double()
    expected, groups = torch.ops.bitsandbytes.quantize_blockwise.default(centred, reference.create_dynamic_map(), 256)
    assert torch.equal(fine, expected) and torch.equal(coarse[:-1], groups.float())
    assert coarse[-1] == absmax.mean()


@pytest.mark.parametrize("name", ["small", "plain", "wide", "odd"])
def test_dequantised_equals_bitsandbytes(name):
    weight = weights()[name]
    packed, state = reference.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    codes, fine, coarse = nf4.quantise_nf4(weight)
    assert coarse[-1] == state.offset and torch.equal(coarse[:-1], state.state2.absmax)
    their_scales = reference.dequantize_blockwise(state.absmax, state.state2) + state.offset
    ours = nf4.dequantise_scales(fine, coarse)
    assert_close(ours, their_scales, rtol=0, atol=0.02 * coarse[:-1].max().item())  # its kernel's grid, see above
    same = (fine == state.absmax).repeat_interleave(64)[: weight.numel()].view(weight.shape)
    back = nf4.dequantise_nf4(codes, fine, coarse, weight.shape)
    assert_close(back[same], reference.dequantize_4bit(packed, state)[same], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dequantised_in_16_bits_is_the_rounded_number(dtype):
    weight = weights()["small"]
    parts = nf4.quantise_nf4(weight)
    exact = nf4.dequantise_nf4(*parts, weight.shape)
    assert torch.equal(nf4.dequantise_nf4(*parts, weight.shape, dtype), exact.to(dtype))


@pytest.mark.parametrize("weight", [torch.zeros(4, 64), torch.tensor([[-3.0]]), torch.full((2, 64), 0.5)])
def test_blocks_of_equal_size_come_back_exactly(weight):
    """Their scales differ from the mean by nothing: bitsandbytes divides zero by zero there."""
    assert torch.equal(nf4.dequantise_nf4(*nf4.quantise_nf4(weight), weight.shape), weight)


def test_a_level_comes_back_as_it_was_and_others_within_half_a_step():
    absmax = torch.tensor([0.5, 2.0])
    weight = (nf4.LEVELS.repeat(4)[None] * absmax[:, None]).view(8, 16)
    codes, found = nf4.quantise_blocks(weight, nf4.LEVELS, 64)
    assert torch.equal(codes, torch.arange(16, dtype=torch.uint8).repeat(2, 4)) and torch.equal(found, absmax)
    values = torch.rand(64) * 2 - 1
    values[0] = 1
    codes, _ = nf4.quantise_blocks(values, nf4.LEVELS, 64)
    away = (nf4.LEVELS[codes.long()].flatten() - values).abs()
    assert torch.equal(away, (nf4.LEVELS[:, None] - values).abs().amin(dim=0))  # no other level is nearer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad, model):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        model.blocks[1].attention.out_proj.weight[0, 3] = bad
    with pytest.raises(ValueError, match=f"a number is {bad}"):
        nf4.quantise_model(model)
    assert model.state_dict().keys() == before.keys()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear4bit_and_its_gradient_equal_a_linear_with_the_same_numbers(bias, dtype):
    torch.manual_seed(3)
    linear = nn.Linear(96, 80, bias=bias)
    layer = nf4.Linear4bit(linear)
    with torch.no_grad():
        linear.weight.copy_(layer.dequantise())
    x = torch.randn(2, 5, 96, dtype=dtype)
    mine, other, linear = x.clone().requires_grad_(), x.clone().requires_grad_(), linear.to(dtype)
    out, expected = layer(mine), linear(other)
    assert out.dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 2e-2
    assert_close(out, expected, rtol=near, atol=near)
    out.square().sum().backward()
    expected.square().sum().backward()
    close = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=5e-2, atol=0.3)
    assert_close(mine.grad, other.grad, **close)


def test_the_gradient_by_finite_differences():
    layer = nf4.Linear4bit(nn.Linear(6, 5, bias=False))
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: nf4.Multiply4bit.apply(x, layer), x)


def test_under_autocast_it_computes_in_16_bits():
    layer = nf4.Linear4bit(nn.Linear(64, 32))
    x = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.isfinite().all()


def test_no_dequantised_weight_waits_for_the_backward_pass():
    layer, kept = nf4.Linear4bit(nn.Linear(128, 128, bias=False)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(2, 128, requires_grad=True)).sum()
    assert max(kept, default=0) < 128 * 128


def test_a_model_in_4_bits_answers_as_its_dequantised_numbers_say_and_is_small(model):
    linear_bytes = sum(2 * m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    plain, tokens = copy.deepcopy(model), torch.randint(97, (2, 12))
    assert nf4.quantise_model(model) is model
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nf4.Linear4bit)}
    assert not any(isinstance(m, nn.Linear) for m in model.blocks.modules())
    stored = sum(b.numel() * b.element_size() for layer in layers.values() for b in layer.buffers())
    assert stored <= 0.35 * linear_bytes
    with torch.no_grad():
        for name, layer in layers.items():
            plain.get_submodule(name).weight.copy_(layer.dequantise())
        assert_close(model(tokens), plain(tokens), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="in 4 bits already"):
        nf4.quantise_model(model)


def test_scales_stay_whole_when_the_model_changes_its_number_format(model):
    nf4.quantise_model(model)
    before = model.blocks[0].attention.out_proj.dequantise()
    halved = copy.deepcopy(model).to(torch.bfloat16)
    assert torch.equal(halved.blocks[0].attention.out_proj.dequantise(), before)
    assert halved(torch.tensor([[1, 2, 3]])).dtype == torch.bfloat16
