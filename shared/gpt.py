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
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be an int, at least 1")
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


# --- GPT-2's checkpoints: the names, layout and settings in Hugging Face's files. shared/checkpoints.py asks for the
# --- last four functions; another architecture has its own.

# Our names and GPT-2's. Those that begin with "c_" belong to a layer that computes x @ W (Conv1D): their matrices are
# [in, out], nn.Linear's are [out, in].
CLASSIFIER = "GPT2ForSequenceClassification"  # what transformers calls this model with another head
NAMES = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}
BLOCK_NAMES = {
    "norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out_proj": "attn.c_proj",
    "norm2": "ln_2", "feed_forward.expand": "mlp.c_fc", "feed_forward.contract": "mlp.c_proj",
}  # fmt: skip
# What a config.json must say, or not mention, for the model to be this architecture.
_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
}  # fmt: skip
_LARGEST = {"vocab_size": 2**31, "n_positions": 2**31, "n_embd": 2**16, "n_head": 2**16, "n_layer": 1000}


def published_name(name):
    """The name of our parameter `name` in GPT-2's checkpoints: "blocks.0.norm1.bias" -> "h.0.ln_1.bias"."""
    if name == "head.weight":
        return "lm_head.weight"
    layer, kind = name.rsplit(".", 1)
    if layer in NAMES:
        return f"{NAMES[layer]}.{kind}"
    _, i, part = layer.split(".", 2)
    return f"h.{i}.{BLOCK_NAMES[part]}.{kind}"


def is_transposed(published):
    """True for the matrices that GPT-2's checkpoints hold as [in, out]."""
    return ".c_" in published and published.endswith(".weight")


def from_published(tensors, names):
    """The tensors of a checkpoint, {published name: tensor}, under our `names` and as [out, in].

    Nothing is copied. A name that is not known is kept; the causal masks that older files hold are left out.
    """
    ours, found = {published_name(name): name for name in names}, {}
    for published, tensor in tensors.items():
        published = published.removeprefix("transformer.")
        if not published.endswith((".attn.bias", ".attn.masked_bias")):
            turned = is_transposed(published) and tensor.dim() == 2
            found[ours.get(published, published)] = tensor.T if turned else tensor
    return found


def to_published(model):
    """The weights of `model` under GPT-2's names; a tied head is left out. Without qkv bias, zeros take its place."""
    tensors = {}
    for name, parameter in model.named_parameters():  # names a shared tensor once
        published, tensor = published_name(name), parameter.detach().cpu()
        prefix = "" if published == "lm_head.weight" else "transformer."
        tensors[prefix + published] = (tensor.T if is_transposed(published) else tensor).contiguous()
    for i, block in enumerate(model.blocks):
        qkv = block.attention.qkv
        if qkv.bias is None:
            tensors[f"transformer.h.{i}.attn.c_attn.bias"] = qkv.weight.new_zeros(qkv.out_features).cpu()
    return tensors


def config_from_json(settings):
    """The GPTConfig that config.json's `settings` describe. Raises ValueError, naming the key, if none does."""
    for key, allowed in _FIXED.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {settings[key]!r:.60}; this model has {allowed[0]!r}")
    sizes = [settings.get(key) for key in _LARGEST]
    for (key, largest), size in zip(_LARGEST.items(), sizes, strict=True):
        if type(size) is not int or not 1 <= size <= largest:
            raise ValueError(f"{key} is {size!r:.50}; it must be an integer from 1 to {largest}")
    width = 4 * settings["n_embd"]
    if settings.get("n_inner") not in (None, width):
        raise ValueError(f"n_inner is {settings['n_inner']!r:.60}; this model has 4 * n_embd, {width}")
    dropout, tied = settings.get("resid_pdrop", 0.1), settings.get("tie_word_embeddings", True)
    if type(dropout) not in (int, float):
        raise ValueError(f"resid_pdrop is {dropout!r:.60}; it must be a number")
    if type(tied) is not bool:
        raise ValueError(f"tie_word_embeddings is {tied!r:.60}; it must be true or false")
    return GPTConfig(*sizes, drop_rate=dropout, tie_weights=tied)


def config_to_json(config):
    """What config.json says of a model with this GPTConfig, in the words of transformers' GPT2Config."""
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": config.vocab_size,
        "n_positions": config.context_length, "n_ctx": config.context_length, "n_embd": config.emb_dim,
        "n_head": config.n_heads, "n_layer": config.n_layers, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "attn_pdrop": config.drop_rate, "embd_pdrop": config.drop_rate,
        "resid_pdrop": config.drop_rate, "tie_word_embeddings": config.tie_weights,
    }  # fmt: skip
