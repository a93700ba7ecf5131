"""Scaled dot-product attention (Vaswani et al. 2017, section 3.2): one head, one causal head, many heads.

Shapes: B batch, T tokens, D width of the model, H heads, K width of one head.
"""

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    """One head in which each token looks at all tokens: x [B, T, D] or [T, D] -> [..., T, K]."""

    def __init__(self, emb_dim, head_dim, qkv_bias=False):
        super().__init__()
        self.query = nn.Linear(emb_dim, head_dim, bias=qkv_bias)
        self.key = nn.Linear(emb_dim, head_dim, bias=qkv_bias)
        self.value = nn.Linear(emb_dim, head_dim, bias=qkv_bias)

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)  # [B, T, K] each
        scores = q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5  # [B, T, T]
        return scores.softmax(dim=-1) @ v  # [B, T, K]


class CausalAttention(nn.Module):
    """One head in which each token looks at itself and the tokens before it: x [B, T, D] -> [B, T, K].

    Raises ValueError when T is larger than `context_length`.
    """

    def __init__(self, emb_dim, head_dim, context_length, drop_rate=0.0, qkv_bias=False):
        super().__init__()
        self.query = nn.Linear(emb_dim, head_dim, bias=qkv_bias)
        self.key = nn.Linear(emb_dim, head_dim, bias=qkv_bias)
        self.value = nn.Linear(emb_dim, head_dim, bias=qkv_bias)
        self.dropout = nn.Dropout(drop_rate)
        future = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("future", future, persistent=False)  # True where the key comes after the query

    def forward(self, x):
        T = x.shape[-2]
        if T > len(self.future):
            raise ValueError(f"the input has {T} tokens; this attention was made for at most {len(self.future)}")
        q, k, v = self.query(x), self.key(x), self.value(x)  # [B, T, K] each
        scores = q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5  # [B, T, T]
        scores = scores.masked_fill(self.future[:T, :T], float("-inf"))
        return self.dropout(scores.softmax(dim=-1)) @ v  # [B, T, K]


class MultiHeadAttention(nn.Module):
    """H causal heads side by side, computed in one go: x [B, T, D] -> [B, T, D].

    One matrix makes queries, keys and values of all heads. `cache`, if given, is a function that stores the keys and
    values of the new tokens in x and returns those of all tokens so far, with a mask (see shared/generation.py).
    """

    def __init__(self, emb_dim, n_heads, drop_rate=0.0, qkv_bias=False):
        super().__init__()
        if emb_dim % n_heads:
            raise ValueError(f"emb_dim ({emb_dim}) must be divisible by n_heads ({n_heads})")
        self.n_heads = n_heads
        self.drop_rate = drop_rate
        self.qkv = nn.Linear(emb_dim, 3 * emb_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(emb_dim, emb_dim)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        heads = self.qkv(x).view(B, T, 3, self.n_heads, D // self.n_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, H, T, K] each
        mask = None
        if cache is not None:
            k, v, mask = cache(k, v)  # [B, H, S, K]: all tokens so far, and who may look at whom
        drop_rate = self.drop_rate if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop_rate, is_causal=mask is None)
        return self.out_proj(out.transpose(1, 2).reshape(B, T, D))
