"""The names and settings of a Llama in Hugging Face's checkpoints, and in GGUF files. Its model: shared/llama.py."""

from shared.llama import LlamaConfig

CLASSIFIER = "LlamaForSequenceClassification"  # what transformers calls this model with another head
NAMES = {"token_embedding": "embed_tokens", "final_norm": "norm"}
BLOCK_NAMES = {
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.out_proj": "self_attn.o_proj", "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.expand": "mlp.up_proj", "feed_forward.contract": "mlp.down_proj",
}  # fmt: skip
GGUF_NAMES = {
    "token_embedding": "token_embd", "final_norm": "output_norm", "head": "output", "norm1": "attn_norm",
    "norm2": "ffn_norm", "attention.query": "attn_q", "attention.key": "attn_k", "attention.value": "attn_v",
    "attention.out_proj": "attn_output", "feed_forward.gate": "ffn_gate", "feed_forward.expand": "ffn_up",
    "feed_forward.contract": "ffn_down",
}  # fmt: skip
_FIXED = {
    "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "rope_scaling": (None,),
    "pretraining_tp": (1,), "attention_dropout": (0.0, 0),
}  # fmt: skip
_SIZES = {  # the fields of LlamaConfig, their keys in config.json, and the largest number that makes sense
    "vocab_size": ("vocab_size", 2**31), "context_length": ("max_position_embeddings", 2**31),
    "emb_dim": ("hidden_size", 2**16), "n_heads": ("num_attention_heads", 2**16),
    "n_kv_heads": ("num_key_value_heads", 2**16), "n_layers": ("num_hidden_layers", 1000),
    "hidden_dim": ("intermediate_size", 2**20),
}  # fmt: skip


def published_name(name):
    """The name of our parameter `name` in Hugging Face's checkpoints: "blocks.0.norm1.weight" -> "model.layers.0...."""
    if name == "head.weight":
        return "lm_head.weight"
    layer, kind = name.rsplit(".", 1)
    if layer in NAMES:
        return f"model.{NAMES[layer]}.{kind}"
    _, i, part = layer.split(".", 2)
    return f"model.layers.{i}.{BLOCK_NAMES[part]}.{kind}"


def from_published(tensors, names):
    """The tensors of a checkpoint, {published name: tensor}, under our `names`; one that is not known keeps its own."""
    ours = {published_name(name): name for name in names}
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    return {ours.get(name, name): tensor for name, tensor in kept.items()}


def to_published(model):
    """The weights of `model` under Hugging Face's names; a tied head is left out."""
    return {published_name(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()}


def config_from_json(settings):
    """The LlamaConfig that config.json's `settings` describe. Raises ValueError, naming the key, if none does."""
    for key, allowed in _FIXED.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{key} is {settings[key]!r:.60}; this model has {allowed[0]!r}")
    rope = settings.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters is {rope!r:.60}; this model has rope_type 'default'")
    settings = {"num_key_value_heads": settings.get("num_attention_heads")} | settings
    sizes = {ours: settings.get(key) for ours, (key, _) in _SIZES.items()}
    for ours, (key, largest) in _SIZES.items():
        if type(sizes[ours]) is not int or not 1 <= sizes[ours] <= largest:
            raise ValueError(f"{key} is {sizes[ours]!r:.50}; it must be an integer from 1 to {largest}")
    base, eps = rope.get("rope_theta", settings.get("rope_theta", 10_000.0)), settings.get("rms_norm_eps", 1e-6)
    tied = settings.get("tie_word_embeddings", False)
    if not all(type(number) in (int, float) and 0 < number < 1e12 for number in (base, eps)) or type(tied) is not bool:
        found = f"rope_theta {base!r:.40}, rms_norm_eps {eps!r:.40}, tie_word_embeddings {tied!r:.40}"
        raise ValueError(f"{found}: two positive numbers and true or false belong there")
    config = LlamaConfig(**sizes, rope_base=float(base), norm_eps=float(eps), tie_weights=tied)
    if settings.get("head_dim") not in (None, config.head_dim):
        raise ValueError(f"head_dim is {settings['head_dim']!r:.60}; this model has {config.head_dim}")
    return config


def config_to_json(config):
    """What config.json says of a model with this LlamaConfig, in the words of transformers' LlamaConfig."""
    sizes = {key: getattr(config, ours) for ours, (key, _) in _SIZES.items()}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, "head_dim": config.head_dim,
        "hidden_act": "silu", "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": config.tie_weights,
    }  # fmt: skip


def config_from_gguf(settings):
    """The LlamaConfig that a GGUF file's `settings` describe. Raises ValueError, naming the key, if none does."""
    if settings.get("general.architecture") != "llama":
        raise ValueError(f"general.architecture is {settings.get('general.architecture')!r:.60}; this model is 'llama'")
    heads = settings.get("llama.attention.head_count")
    return config_from_json({
        "vocab_size": len(settings.get("tokenizer.ggml.tokens", ())), "num_attention_heads": heads,
        "max_position_embeddings": settings.get("llama.context_length"), "tie_word_embeddings": True,
        "hidden_size": settings.get("llama.embedding_length"), "num_hidden_layers": settings.get("llama.block_count"),
        "num_key_value_heads": settings.get("llama.attention.head_count_kv", heads),
        "intermediate_size": settings.get("llama.feed_forward_length"),
        "rope_theta": settings.get("llama.rope.freq_base", 10_000.0),
        "rms_norm_eps": settings.get("llama.attention.layer_norm_rms_epsilon"),
    })  # fmt: skip


def unpermuted(weight, n_heads):
    """Rows of a query or key matrix [n_heads * K, D] in the order of Hugging Face's checkpoints, from that of GGUF.

    llama.cpp turns neighbouring numbers (2i, 2i + 1), so its files have them side by side; here (i, i + K/2) turn.
    """
    return weight.view(n_heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def from_gguf(tensors, config):
    """The tensors of a GGUF file, {its name: tensor}, under our names."""
    parts, found = {theirs: ours for ours, theirs in GGUF_NAMES.items()}, {}
    for name, tensor in tensors.items():
        *block, part, kind = name.split(".")  # blk.0.attn_q.weight
        place = ["blocks", block[1]] if len(block) == 2 else block
        ours = ".".join([*place, parts.get(part, part), kind])
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(part)
        found[ours] = unpermuted(tensor, heads) if heads else tensor
    return found


def to_gguf(model):
    """The weights of `model` under GGUF's names, with the rows of queries and keys in its order; no tied head."""
    tensors = {}
    for name, parameter in model.named_parameters():
        *place, layer, kind = name.split(".")  # "blocks", "0", "attention", "query", "weight"
        part = GGUF_NAMES[".".join([*place[2:], layer])]
        heads = {"attn_q": model.config.n_heads, "attn_k": model.config.n_kv_heads}.get(part)
        tensor = parameter.detach()
        if heads:  # the other way of `unpermuted`
            tensor = tensor.view(heads, 2, -1, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)
        tensors[".".join((["blk", place[1]] if place else []) + [part, kind])] = tensor
    return tensors
