"""NF4, the 4-bit format of QLoRA (Dettmers et al. 2023), and a linear layer that keeps its weights in it.

Blocks of 64 numbers share their largest size (absmax) as a scale; each number becomes the nearest of 16 levels, two of
them packed into a byte. The scales are quantised too ("double quantisation"). Codes and scales are those of the library
bitsandbytes.

Shapes: n numbers, b blocks of 64, g groups of 256 scales, D and E widths of a linear layer's input and output.
"""

import torch
import torch.nn.functional as F
from torch import nn

BLOCK, GROUP = 64, 256  # numbers that share a scale, and scales that share one


def normal_levels():
    """The 16 levels of NF4 [16], ascending from -1 to 1: quantiles of the normal distribution over the largest one.

    Eight lie above zero, seven below, zero is one of them: padding stays exact. The outermost probability is half-way
    between 1 - 1/32 and 1 - 1/30 (Dettmers et al. 2023, section 3), rounded as in the authors' library, whose numbers
    these are to the last bit.
    """
    outermost = round(1 - (1 / 32 + 1 / 30) / 2, 7)
    above = torch.special.ndtri(torch.linspace(outermost, 0.5, 9)[:-1].double()).float()  # [8]; of 0.5 it would be 0
    below = -torch.special.ndtri(torch.linspace(outermost, 0.5, 8)[:-1].double()).float()  # [7]
    return torch.cat([below, torch.zeros(1), above.flip(0)]) / above[0]


def dynamic_levels():
    """The 256 levels from -1 to 1 in which scales are kept: many near zero, few far away [256], ascending.

    The decade below 10^-i holds 2^(6-i) levels of each sign, i = 0 to 6; 0 and 1 are added (Dettmers 2016, section 2).
    """
    levels = [torch.tensor([0.0, 1.0])]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        levels += [middles, -middles]
    return torch.cat(levels).sort().values


LEVELS, SCALE_LEVELS = normal_levels(), dynamic_levels()
PAIRS = torch.cartesian_prod(LEVELS, LEVELS)  # [256, 2]: the two numbers that a byte stands for


def quantise_blocks(values, levels, size):
    """Numbers of any shape, in blocks of `size`: (code of the nearest level, uint8 [blocks, size]; absmax [blocks]).

    The last block is filled up with zeros. Raises ValueError for a number that is not finite.
    """
    values, levels = values.detach().flatten().float(), levels.to(values.device)
    if not values.isfinite().all():
        raise ValueError(f"a number is {values[~values.isfinite()][0].item()}: what is not finite cannot be quantised")
    blocks = F.pad(values, (0, -len(values) % size)).view(-1, size)
    absmax = blocks.abs().amax(dim=1)  # [blocks]
    scaled = (blocks * (1 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    return torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2).to(torch.uint8), absmax


def quantise_scales(absmax):
    """Double quantisation of scales [b]: (codes, uint8 [b]; float32 [g + 1]: a scale for each group, and the mean).

    The scales are all positive, so their mean is taken off first.
    """
    mean = absmax.mean()
    codes, coarse = quantise_blocks(absmax - mean, SCALE_LEVELS, GROUP)
    return codes.flatten()[: len(absmax)], torch.cat([coarse, mean[None]])


def dequantise_scales(fine, coarse):
    """Scales [b] from their codes [b] and the groups' scales [g + 1]."""
    found = SCALE_LEVELS.to(fine.device)[fine.int()]  # [b]
    return found * coarse[:-1].repeat_interleave(GROUP)[: len(fine)] + coarse[-1]


def quantise_nf4(weight):
    """A tensor in 4 bits: (codes, two in a byte, uint8 [32 b]; `quantise_scales` of the b blocks' absmax)."""
    codes, absmax = quantise_blocks(weight, LEVELS, BLOCK)  # [b, 64], [b]
    return (codes[:, ::2] << 4 | codes[:, 1::2]).flatten(), *quantise_scales(absmax)


def dequantise_nf4(codes, fine, coarse, shape, dtype=torch.float32):
    """The tensor of this shape for which codes and scales stand."""
    pairs = F.embedding(codes.int(), PAIRS.to(codes.device))  # [32 b, 2]
    blocks = pairs.view(-1, BLOCK) * dequantise_scales(fine, coarse)[:, None]  # [b, 64]
    return blocks.to(dtype).flatten()[: shape.numel()].view(shape)


class Multiply4bit(torch.autograd.Function):
    """x [..., D] times the weight [E, D] of a `Linear4bit`: [..., E].

    The gradient goes to x only. For it the weight is made a second time, so that no copy of it waits in between.
    """

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return x @ layer.dequantise(x.dtype).T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.dequantise(gradient.dtype), None


class Linear4bit(nn.Module):
    """An nn.Linear whose weight is kept in NF4 and does not train: x [..., D] -> [..., E].

    It computes in the number format of x, or in that of autocast.
    """

    def __init__(self, linear):
        super().__init__()
        self.shape, self.bias = linear.weight.shape, linear.bias
        self.out_features, self.in_features = self.shape
        codes, fine, coarse = quantise_nf4(linear.weight)
        self.register_buffer("codes", codes)
        self.register_buffer("fine", fine)
        self.register_buffer("coarse", coarse.view(torch.int32))  # its bits: model.to(bfloat16) would round numbers

    def dequantise(self, dtype=torch.float32):
        """The weight [E, D] in this number format."""
        return dequantise_nf4(self.codes, self.fine, self.coarse.view(torch.float32), self.shape, dtype)

    def forward(self, x):
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        out = Multiply4bit.apply(x.to(dtype), self)  # [..., E]
        return out if self.bias is None else out + self.bias.to(dtype)


def quantise_model(model):
    """Put a `Linear4bit` in the place of each linear layer in the blocks of `model`, in place; returns `model`.

    Embedding, norms and head stay as they are. Raises ValueError, with nothing changed, where a weight is not finite or
    no linear layer is left.
    """
    places = [(part, name, layer) for part in model.blocks.modules() for name, layer in part.named_children()
              if isinstance(layer, nn.Linear)]  # fmt: skip
    if not places:
        raise ValueError("there is no linear layer in the model's blocks: are they in 4 bits already?")
    layers = [Linear4bit(layer) for _, _, layer in places]
    for (part, name, _), layer in zip(places, layers, strict=True):
        setattr(part, name, layer)
    return model
