"""LoRA: fine-tuning by low-rank updates (Hu et al. 2022), with adapters in the files of the library PEFT.

    apply_lora(model, rank=8, alpha=16)               # from now on only the adapters train
    save_adapter(model, "my_adapter", base="my_gpt")  # peft.PeftModel.from_pretrained loads it
    adapters = merge_lora(model)                      # a plain model again: save_model takes it
    unmerge_lora(model, adapters)

The model may be of either architecture, and its linear layers in 4 bits (shared/nf4.py): that is QLoRA.
Shapes: D and E widths of a layer's input and output, r rank.
"""

import difflib
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from shared.batches import as_list
from shared.files import read_json, write_together
from shared.gpt import GPTModel
from shared.nf4 import Linear4bit
from shared.weights import architecture_of, find_tensors


class LoRALinear(nn.Module):
    """A frozen linear layer plus a low-rank update: x [..., D] -> base(x) + alpha / r * B(A(dropout(x))) [..., E].

    A [r, D] begins at random, B [E, r] at zero, so at first nothing changes (Hu et al. 2022, section 4.1). A and B stay
    in float32; they compute in the number format of x. Raises ValueError as `check_lora` does.
    """

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        check_lora(base, rank, alpha, dropout)
        device = next(tensor.device for tensor in (*base.parameters(), *base.buffers()))
        self.base, self.alpha, self.dropout = base.requires_grad_(False), alpha, nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(rank, base.in_features, device=device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as an nn.Linear begins, and A in the library PEFT

    @property
    def scale(self):
        return self.alpha / len(self.A)

    def update(self):
        """What the adapter adds to the weight, as one matrix [E, D]."""
        return self.scale * (self.B @ self.A)

    def forward(self, x):
        narrow = F.linear(self.dropout(x), self.A.to(x.dtype)) * self.scale  # [..., r]
        return self.base(x) + F.linear(narrow, self.B.to(x.dtype))  # [..., E]


def check_lora(layer, rank, alpha, dropout, name="the layer"):
    """Raise ValueError, naming the value and its bound, where no adapter of these settings fits on `layer`."""
    most = min(layer.in_features, layer.out_features)
    if type(rank) is not int or not 1 <= rank <= most:
        shape = f"{name} goes from {layer.in_features} to {layer.out_features} numbers"
        raise ValueError(f"rank is {rank!r}; {shape}, so it must be an int from 1 to {most}")
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}; it must be a finite number above 0")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout!r}; it must be in [0, 1)")


def apply_lora(model, rank=8, alpha=16, targets=("blocks",), dropout=0.0):
    """Freeze `model` and put a `LoRALinear` around each of its linear layers that `targets` name; returns `model`.

    A target is a part of a layer's name, or several joined by points: "blocks" (all matrices of the blocks),
    "attention", "query", "feed_forward.expand", "blocks.0", "head". Raises ValueError, with nothing changed, where one
    matches no layer (near names are offered), where `check_lora` does, or where there are adapters already.
    """
    if adapters_of(model):
        raise ValueError(f"the model has {len(adapters_of(model))} adapters already: merge them first")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Linear, Linear4bit))}
    targets, found = [targets] if isinstance(targets, str) else as_list(targets), {}
    if not targets:
        raise ValueError("there is no target: name a layer, such as 'blocks' for all of them")
    for target in targets:
        names = [name for name in layers if f".{target}." in f".{name}."]
        if not names:
            raise ValueError(f"the target {target!r} matches no linear layer; {_near(target, layers, model)}")
        found |= {name: layers[name] for name in names}
    for name, layer in found.items():
        check_lora(layer, rank, alpha, dropout, name)
    model.requires_grad_(False)
    for name, layer in found.items():
        model.set_submodule(name, LoRALinear(layer, rank, alpha, dropout).train(model.training))
    return model


def _near(target, layers, model):
    """The end of an error: names near to `target`, or what a name of Hugging Face's is called here."""
    there = {theirs: ours for ours, theirs in architecture_of(model.config)[0].BLOCK_NAMES.items()}
    words = sorted({part for name in layers for part in name.split(".") if not part.isdigit()})
    near = ["head"] if target == "lm_head" else [there[name] for name in there if name.endswith(f".{target}")]
    near = near or [ours for theirs, ours in there.items() if theirs == target]
    near = near or difflib.get_close_matches(str(target), words, 3, 0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"the parts of their names are {', '.join(words)}"


def adapters_of(model):
    """The adapters in `model`: {name of the layer: LoRALinear}."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def count_trainable(model):
    """How many numbers of `model` train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def merge_lora(model):
    """Add each update to its weight, in place: a plain model again. Returns the adapters, {name: LoRALinear}.

    4 bits become the model's format. A tied head is untied where it was adapted, which a printed line says. All weights
    stay frozen. Raises ValueError, with nothing changed, where there is no adapter, or one that is not finite.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise ValueError("the model has no adapters: were they merged already?")
    for name, adapter in adapters.items():
        if not (adapter.A.isfinite().all() and adapter.B.isfinite().all()):
            raise ValueError(f"the adapter of {name} is not finite: merging it would ruin the weight")
    for name, adapter in adapters.items():
        layer = adapter.base
        if isinstance(layer, Linear4bit):
            layer = nn.Linear(layer.in_features, layer.out_features, bias=False, device=adapter.A.device)
            layer.weight, layer.bias = nn.Parameter(adapter.base.dequantise(), False), adapter.base.bias
        elif layer.weight is model.token_embedding.weight:
            layer.weight = nn.Parameter(layer.weight.clone(), False)
            model.config, adapter.tied = replace(model.config, tie_weights=False), True
            print(f"merging unties the head from the embedding: {layer.weight.numel():,} more numbers to save")
        layer.weight.copy_(layer.weight.float() + adapter.update())
        model.set_submodule(name, layer.to(model.token_embedding.weight.dtype))
        adapter.merged = [layer]  # in a list it is no part of the adapter
    return adapters


@torch.no_grad()
def unmerge_lora(model, adapters):
    """Take the updates out again and put the `adapters` of `merge_lora` back, in place; returns `model`.

    The weights are as before up to rounding; a head that was untied is tied again, and 4 bits are as they were. Raises
    ValueError, with nothing changed, where one was not merged into this very model.
    """
    for name, adapter in adapters.items():
        if model.get_submodule(name) is not getattr(adapter, "merged", [None])[0]:
            raise ValueError(f"the adapter of {name} is not merged into this model (nor into the one it is a copy of)")
    for name, adapter in adapters.items():
        adapter.to(model.token_embedding.weight.device).train(model.training).merged = [None]
        if getattr(adapter, "tied", False):
            adapter.base.weight, adapter.tied = model.token_embedding.weight, False
            model.config = replace(model.config, tie_weights=True)
        elif isinstance(adapter.base, nn.Linear):
            adapter.base.weight.copy_(adapter.base.weight.float() - adapter.update())
        model.set_submodule(name, adapter)
    return model


# --- Adapters in PEFT's files: adapter_config.json and adapter_model.safetensors

# What an adapter_config.json must say, or not mention, for its adapters to be those of this module.
_FIXED = {"peft_type": ["LORA"], "use_rslora": [False], "use_dora": [False], "bias": ["none"], "rank_pattern": [{}],
          "alpha_pattern": [{}], "modules_to_save": [None], "lora_bias": [False], "alora_invocation_tokens": [None],
          "init_lora_weights": [True, "gaussian", "eva", "orthogonal"]}  # others change the base too # fmt: skip


def published_layer(model, name):
    """The name of a layer in Hugging Face's model: "blocks.0.attention.query" -> "model.layers.0.self_attn.q_proj"."""
    published = architecture_of(model.config)[0].published_name(f"{name}.weight").removesuffix(".weight")
    return f"transformer.{published}" if isinstance(model, GPTModel) and name != "head" else published


def base_checksum(model):
    """SHA-256 of the weights without the adapters, as 64 digits; in another number format it is another one."""
    found, adapters = hashlib.sha256(), {f"{name}.{part}" for name in adapters_of(model) for part in "AB"}
    kept = {name.replace(".base.", "."): t for name, t in model.state_dict().items() if name not in adapters}
    for name, tensor in sorted(kept.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def save_adapter(model, folder, base=""):
    """Write the adapters of `model` as a folder that peft loads; `base` says of which model they are (folder or name).

    The checksum of the base goes along. Raises ValueError where there are no adapters, OSError where it cannot write.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise ValueError("the model has no adapters to save: were they merged already?")
    one, names = next(iter(adapters.values())), {name: published_layer(model, name) for name in adapters}
    tensors = {f"base_model.model.{names[name]}.lora_{part}.weight": getattr(adapter, part).detach().cpu().contiguous()
               for name, adapter in adapters.items() for part in "AB"}  # fmt: skip
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": len(one.A),
                "lora_alpha": one.alpha, "lora_dropout": one.dropout.p, "bias": "none", "inference_mode": True,
                "fan_in_fan_out": isinstance(model, GPTModel), "target_modules": sorted(names.values())}  # fmt: skip
    with write_together(folder) as aside:
        save_file(tensors, aside / "adapter_model.safetensors", {"format": "pt", "base_sha256": base_checksum(model)})
        (aside / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_adapter(model, folder, check_base=True):
    """Put the adapters in a folder, of `save_adapter` or of peft, into `model`; returns `model`.

    Raises FileNotFoundError, or ValueError naming the file, with nothing changed, where they are of another base: their
    shapes or its checksum differ (peft writes none). `check_base=False` lets the same model in another number format
    through, for example in 4 bits.
    """
    config, file = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    if adapters_of(model):
        raise ValueError(f"the model has {len(adapters_of(model))} adapters already: merge them first")
    if missing := next((path for path in (config, file) if not path.is_file()), None):
        raise FileNotFoundError(f"{missing} does not exist; an adapter is a folder with {config.name} and {file.name}")
    settings, found = read_json(config), {}
    for key, wanted in _FIXED.items():
        if (settings.get(key) or wanted[0]) not in wanted:
            raise ValueError(f"{config}: {key} is {settings[key]!r:.60}; known here is {wanted[0]!r}")
    other = f"{file} is an adapter of another base ({settings.get('base_model_name_or_path') or 'not named'})"
    layers = {published_layer(model, name): (name, layer) for name, layer in model.named_modules()
              if isinstance(layer, (nn.Linear, Linear4bit))}  # fmt: skip
    for key, tensor in find_tensors([file]).items():
        published, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        name, layer = layers.get(published, (None, None))
        if layer is None or part not in ("A", "B"):
            raise ValueError(f"{other}: {key} belongs to no layer of this model")
        shape = [settings.get("r"), layer.in_features] if part == "A" else [layer.out_features, settings.get("r")]
        if list(tensor.shape) != shape:
            raise ValueError(f"{other}: {key} is {list(tensor.shape)}; it would have to be {shape}")
        found[f"{name}.{part}"] = tensor
    names = {key.rpartition(".")[0] for key in found}
    if not found or len(found) != 2 * len(names):
        raise ValueError(f"{file} is damaged: it holds {len(found)} matrices for {len(names)} layers, not two for each")
    with safe_open(file, "pt") as opened:
        checksum = (opened.metadata() or {}).get("base_sha256")
    if check_base and checksum and checksum != base_checksum(model):
        raise ValueError(f"{other}, or of this one in another number format (then check_base=False): checksums differ")
    apply_lora(model, settings["r"], settings.get("lora_alpha", 8), sorted(names), settings.get("lora_dropout", 0.0))
    for name, adapter in adapters_of(model).items():
        adapter.A.data.copy_(found[f"{name}.A"])
        adapter.B.data.copy_(found[f"{name}.B"])
    return model
