"""The GPT-2 architecture (Radford et al. 2019; the pre-norm Transformer decoder of Vaswani et al. 2017).

Shapes: B batch, T tokens, D width of the model, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import nn

from shared.attention import MultiHeadAttention


@dataclass(frozen=True)
class GPTConfig:
    """The numbers that fix a GPT. Raises ValueError where they do not fit together."""

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float = 0.0
    qkv_bias: bool = True
    tie_weights: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.emb_dim % self.n_heads:
            raise ValueError(f"emb_dim ({self.emb_dim}) must be divisible by n_heads ({self.n_heads})")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate is {self.drop_rate}; it must be in [0, 1)")

    @property
    def n_kv_heads(self):
        return self.n_heads  # each head has keys and values of its own

    @property
    def head_dim(self):
        return self.emb_dim // self.n_heads


# The four sizes of GPT-2 (Radford et al. 2019, table 2; head counts from the published configurations).
GPT2_CONFIGS = {
    "gpt2": GPTConfig(50257, 1024, emb_dim=768, n_heads=12, n_layers=12),
    "gpt2-medium": GPTConfig(50257, 1024, emb_dim=1024, n_heads=16, n_layers=24),
    "gpt2-large": GPTConfig(50257, 1024, emb_dim=1280, n_heads=20, n_layers=36),
    "gpt2-xl": GPTConfig(50257, 1024, emb_dim=1600, n_heads=25, n_layers=48),
}


class FeedForward(nn.Module):
    """Each token by itself through a hidden layer four times as wide: [B, T, D] -> [B, T, D].

    GELU in its tanh form (Hendrycks and Gimpel 2016), as in GPT-2.
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.expand = nn.Linear(emb_dim, 4 * emb_dim)
        self.gelu = nn.GELU(approximate="tanh")
        self.contract = nn.Linear(4 * emb_dim, emb_dim)

    def forward(self, x):
        return self.contract(self.gelu(self.expand(x)))


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added to the stream: [B, T, D] -> [B, T, D]."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.emb_dim)
        self.attention = MultiHeadAttention(config.emb_dim, config.n_heads, config.drop_rate, config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.emb_dim)
        self.feed_forward = FeedForward(config.emb_dim)
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x, cache=None):
        x = x + self.dropout(self.attention(self.norm1(x), cache))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPTModel(nn.Module):
    """A GPT: `model(tokens)` turns token ids [B, T] into logits [B, T, V] for each next token.

    `hidden` stops before the output head, for those who need only some positions or another head. With a `cache`
    (see shared/generation.py), `tokens` holds only the new tokens of each row.
    Raises ValueError for a token id outside the vocabulary or more tokens than `config.context_length`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.emb_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = nn.Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.final_norm = nn.LayerNorm(config.emb_dim)
        self.head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        init_gpt2(self)

    def embed(self, tokens, cache=None):
        """What goes into the first block: token plus position embeddings [B, T, D]."""
        T = tokens.shape[1]
        if T == 0:
            raise ValueError("the input has no tokens")
        if cache is None and T > self.config.context_length:
            raise ValueError(f"the input has {T} tokens; context_length is {self.config.context_length}")
        positions = torch.arange(T, device=tokens.device) if cache is None else cache.positions
        try:
            x = self.token_embedding(tokens)
        except IndexError:  # a CPU looks at each id anyway; on a GPU asking would force a synchronisation
            wrong = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)][0].item()
            raise ValueError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}") from None
        return self.dropout(x + self.position_embedding(positions))  # [B, T, D]

    def hidden(self, tokens, cache=None):
        """The last layer's normalised output [B, T, D]."""
        x = self.embed(tokens, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layer(i))
        return self.final_norm(x)

    def forward(self, tokens, cache=None):
        return self.head(self.hidden(tokens, cache))  # [B, T, V]


def init_gpt2(model):
    """GPT-2's initialisation, in place: weights N(0, 0.02), those that write to the residual stream smaller.

    These are divided by sqrt(2 * n_layers), since that many are added up (Radford et al. 2019, section 2.3). Biases are
    0. As in transformers, the position embedding too is drawn with 0.02; OpenAI's own code has 0.01 there.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" in name:
            nn.init.ones_(parameter)
        elif name.endswith(("out_proj.weight", "contract.weight")):
            nn.init.normal_(parameter, std=0.02 / (2 * model.config.n_layers) ** 0.5)
        else:
            nn.init.normal_(parameter, std=0.02)


def count_parameters(model):
    """How many numbers the model holds; a tied head counts once."""
    return sum(p.numel() for p in model.parameters())
