"""The Llama architecture (Touvron et al. 2023), which SmolLM2 and most open models of today share with small changes.

What changed since GPT-2: RMSNorm for LayerNorm, rotary positions for learned ones, SwiGLU for GELU, fewer heads of keys
and values than of queries, and no biases.

Shapes: B batch, T tokens, D width of the model, H heads of queries, G heads of keys and values, K width of one head,
V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class LlamaConfig:
    """The numbers that fix a Llama. Raises ValueError where they do not fit together."""

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    hidden_dim: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tie_weights: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_kv_heads", "n_layers", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.emb_dim % (2 * self.n_heads):
            raise ValueError(f"emb_dim ({self.emb_dim}) must be divisible by twice n_heads ({self.n_heads})")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be divisible by n_kv_heads ({self.n_kv_heads})")

    @property
    def head_dim(self):
        return self.emb_dim // self.n_heads


class RMSNorm(nn.Module):
    """Each vector [..., D] divided by its root mean square, times a learned scale (Zhang and Sennrich 2019).

    Unlike LayerNorm it neither subtracts the mean nor adds a bias.
    """

    def __init__(self, emb_dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(emb_dim))
        self.eps = eps

    def forward(self, x):
        wide = x.float()  # squares of half-precision numbers would lose too much
        return (wide * (wide.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype) * self.weight


def rotary_angles(positions, head_dim, base):
    """(cosines, sines) [..., T, K] of the angles by which each of the positions [..., T] turns each pair of numbers.

    Pair i turns by position / base^(2i/K) (Su et al. 2021, section 3.2.2): the first pairs fast, the last ones slowly.
    """
    speeds = base ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)  # [K/2]
    angles = positions[..., None] * speeds  # [..., T, K/2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn the pairs (i, i + K/2) of x [..., T, K] by their angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class GroupedQueryAttention(nn.Module):
    """Causal attention whose groups of heads share keys and values (Ainslie et al. 2023): [B, T, D] -> [B, T, D].

    `rotation` are the (cosines, sines) of the positions of x; `cache` as in shared/attention.py.
    """

    def __init__(self, config):
        super().__init__()
        self.head_dim = config.head_dim
        self.query = nn.Linear(config.emb_dim, config.n_heads * self.head_dim, bias=False)
        self.key = nn.Linear(config.emb_dim, config.n_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(config.emb_dim, config.n_kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(config.n_heads * self.head_dim, config.emb_dim, bias=False)

    def forward(self, x, rotation, cache=None):
        B, T, _ = x.shape
        q, k, v = (
            layer(x).view(B, T, -1, self.head_dim).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # [B, H, T, K], [B, G, T, K] twice
        q, k, mask = rotate(q, *rotation), rotate(k, *rotation), None
        if cache is not None:
            k, v, mask = cache(k, v)  # [B, G, S, K]: all tokens so far, and who may look at whom
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=True)
        return self.out_proj(out.transpose(1, 2).reshape(B, T, -1))


class SwiGLU(nn.Module):
    """Each token by itself: one hidden layer, times the SiLU of another (Shazeer 2020): [B, T, D] -> [B, T, D]."""

    def __init__(self, emb_dim, hidden_dim):
        super().__init__()
        self.gate = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.expand = nn.Linear(emb_dim, hidden_dim, bias=False)
        self.contract = nn.Linear(hidden_dim, emb_dim, bias=False)

    def forward(self, x):
        return self.contract(F.silu(self.gate(x)) * self.expand(x))


class LlamaBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added to the stream: [B, T, D] -> [B, T, D]."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = RMSNorm(config.emb_dim, config.norm_eps)
        self.attention = GroupedQueryAttention(config)
        self.norm2 = RMSNorm(config.emb_dim, config.norm_eps)
        self.feed_forward = SwiGLU(config.emb_dim, config.hidden_dim)

    def forward(self, x, rotation, cache=None):
        x = x + self.attention(self.norm1(x), rotation, cache)
        return x + self.feed_forward(self.norm2(x))


class LlamaModel(nn.Module):
    """A Llama: `model(tokens)` turns token ids [B, T] into logits [B, T, V], with `hidden` and `head` as a GPTModel.

    Raises ValueError for a token id outside the vocabulary or more tokens than `config.context_length`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.emb_dim)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.emb_dim, config.norm_eps)
        self.head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=0.02)

    def hidden(self, tokens, cache=None):
        """The last layer's normalised output [B, T, D]."""
        T, V = tokens.shape[1], self.config.vocab_size
        if not 1 <= T <= self.config.context_length and cache is None:
            raise ValueError(f"the input has {T} tokens; it must have 1 to {self.config.context_length}")
        try:
            x = self.token_embedding(tokens)  # [B, T, D]
        except IndexError:
            wrong = tokens[(tokens < 0) | (tokens >= V)][0].item()
            raise ValueError(f"token id {wrong} is outside the vocabulary of {V}") from None
        positions = torch.arange(T, device=tokens.device) if cache is None else cache.positions
        rotation = rotary_angles(positions, self.config.head_dim, self.config.rope_base)
        rotation = [table.to(x.dtype) if table.dim() == 2 else table[:, None].to(x.dtype) for table in rotation]
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache.layer(i))
        return self.final_norm(x)

    def forward(self, tokens, cache=None):
        return self.head(self.hidden(tokens, cache))  # [B, T, V]
