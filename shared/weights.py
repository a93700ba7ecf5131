"""Checkpoints in Hugging Face's GPT-2 layout: GPT-2's published weights and the course's own in, ours out.

    model, tokenizer = load_base()                # what chapters 4 and 5 start from
    export_checkpoint(model, tokenizer, "my_gpt")  # AutoModelForCausalLM.from_pretrained("my_gpt") loads it
    python -m shared.weights my_gpt --gguf my_gpt.gguf

Weights are read from safetensors files only, never from a pickle, which could run code.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from shared import data
from shared.files import read_json
from shared.gpt import GPT2_CONFIGS, GPTConfig, GPTModel, count_parameters
from shared.runtime import scale
from shared.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    from_tiktoken,
    load_tokenizer,
    valid_unicode,
    with_end_of_text,
)
from shared.tokenizer_files import has_tokenizer, read_bpe_files

COURSE_BASE = data.places.ROOT / "shared" / "course_base"

# Our names and those of GPT-2's checkpoints. Names that begin with "c_" were made by a layer that multiplies x @ W
# (Conv1D): their matrices are [in, out], nn.Linear's are [out, in].
NAMES = {"token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f"}
BLOCK_NAMES = {
    "norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out_proj": "attn.c_proj",
    "norm2": "ln_2", "feed_forward.expand": "mlp.c_fc", "feed_forward.contract": "mlp.c_proj",
}  # fmt: skip
_ASIDE = ".partial-export-"  # how the folder begins in which an export is written aside
_OTHER_TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja")
_EXPORTED = (
    "config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
# What a config.json must say, or not mention, for the model to be this architecture.
_FIXED = {
    "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
}  # fmt: skip


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


class SkipInit(TorchFunctionMode):
    """While it is on, `torch.nn.init` draws no random numbers: for weights that are replaced at once."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return function(*args, **kwargs)


def load_weights(config, files, others=()):
    """A GPTModel with the weights of the safetensors `files`, in float32, on the CPU, in eval mode.

    The model is made without memory of its own ("meta") and gets tensors that lie in the memory-mapped files: nothing
    is read before it is used, nothing is held twice, and what training changes is copied page by page. So a file must
    not be written to while the model lives (replacing it is fine). The transposed ones are views, not contiguous.
    `others` names tensors that may stand beside them. Raises ValueError naming the file, or the tensor that is missing,
    unknown or of another shape.
    """
    stored = find_tensors(files)
    check_sizes(stored, config, files)
    with torch.device("meta"), SkipInit():
        model = GPTModel(config)
    wanted = {name: published_name(name) for name, _ in model.named_parameters()}
    check_names(stored, wanted, config, others)
    tensors = {}
    for name, parameter in model.named_parameters():
        file, tensor = stored[wanted[name]]
        if is_transposed(wanted[name]):
            tensor = tensor.T
        if wanted[name] in ("wte.weight", "lm_head.weight"):
            tensor = tensor[: config.vocab_size]  # rows after the vocabulary are padding
        if tensor.shape != parameter.shape or not tensor.is_floating_point():
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{file}: {wanted[name]} is {found}; the model has {list(parameter.shape)} for it")
        tensors[name] = tensor.float()
    model.load_state_dict(tensors, strict=False, assign=True)
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model.eval()


def find_tensors(files):
    """{published name: (file, memory-mapped tensor)} of all weights in `files`, the causal masks left out."""
    stored = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name.removeprefix("transformer."): opened.get_tensor(name) for name in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file (cut off in a download?): {error}") from None
        stored |= {name: (file, tensor) for name, tensor in tensors.items()
                   if not name.endswith((".attn.bias", ".attn.masked_bias"))}  # fmt: skip
    return stored


def check_sizes(stored, config, files):
    """Raise ValueError unless the tensors in `stored` have the sizes of `config`: before a model of these is made."""
    if config.n_layers > len(stored):
        raise ValueError(f"{files[0]} is no GPT-2 of {config.n_layers} layers: it has {len(stored)} tensors")
    for name, rows in (("wte.weight", config.vocab_size), ("wpe.weight", config.context_length)):
        if name not in stored:
            raise ValueError(f"{files[0]} is no GPT-2: it lacks {name}")
        file, tensor = stored[name]
        if tensor.dim() != 2 or list(tensor[:rows].shape) != [rows, config.emb_dim]:
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{file}: {name} is {found}; the model has {[rows, config.emb_dim]} for it")
    for name, (file, tensor) in stored.items():
        if (is_transposed(name) or name == "lm_head.weight") and tensor.dim() != 2:
            raise ValueError(f"{file}: {name} is {list(tensor.shape)}; it must be a matrix")


def check_names(stored, wanted, config, others=()):
    """Raise ValueError unless `stored` holds exactly the `wanted` tensors; a tied head and `others` may be there."""
    file = next(iter(stored.values()), ("the checkpoint",))[0]
    head = "lm_head.weight"
    if head not in stored and not config.tie_weights:
        raise ValueError(f"{file} has no {head}, but config.json says tie_word_embeddings: false")
    missing = sorted(set(wanted.values()) - set(stored))
    unknown = sorted(set(stored) - set(wanted.values()) - {*others, *[head][: config.tie_weights]})
    both = [stored[name][1] for name in (head, "wte.weight") if name in stored]
    if config.tie_weights and len(both) == 2 and not torch.equal(*both):
        raise ValueError(f"{file}: {head} is not equal to wte.weight, but config.json says tie_word_embeddings: true")
    if missing or unknown:
        lists = [f"{kind} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({len(names)})"
                 for kind, names in (("lacks", missing), ("has unknown", unknown)) if names]  # fmt: skip
        raise ValueError(f"{file} is no GPT-2 of {config.n_layers} layers: it {' and '.join(lists)}")


def load_gpt2(name="gpt2"):
    """GPT-2 as published (Radford et al. 2019): (GPTModel, tiktoken.Encoding).

    `name`: gpt2 (124 M parameters), gpt2-medium (355 M), gpt2-large (774 M) or gpt2-xl (1.6 G). Raises ValueError for
    another name, shared.data.DownloadError where the weights cannot be had.
    """
    if name not in GPT2_CONFIGS:
        raise ValueError(f"there is no GPT-2 called {name!r}; there are {', '.join(GPT2_CONFIGS)}")
    weights, *bpe = (data.fetch(part, sample_ok=False) for part in (f"{name}_weights", "gpt2_vocab", "gpt2_encoder"))
    return load_weights(GPT2_CONFIGS[name], [weights]), BPETokenizer(*read_bpe_files(*bpe)).to_tiktoken("gpt2")


def load_base(path=None, size="gpt2"):
    """The model that later chapters start from: (GPTModel, tiktoken.Encoding whose name is the model's).

    The checkpoint folder `path`, else the one that LLM_BASE names; else at quick scale the course base, at full scale
    GPT-2 of this `size`, or the course base where that cannot be had, with a line that says so. Raises ValueError or
    FileNotFoundError, naming the folder, where it holds no model or no tokenizer that knows <|endoftext|>.
    """
    if not path and os.environ.get("LLM_BASE", "").strip():
        path = data.places.ROOT / Path(os.environ["LLM_BASE"].strip()).expanduser()
    if not path and scale() == "full":
        try:
            return load_gpt2(size)
        except data.DownloadError as error:
            print(f"GPT-2 is not to be had ({str(error).splitlines()[0]}): using the course base in its place")
    folder = path or COURSE_BASE
    model, tokenizer = load_checkpoint_dir(folder)
    return model, with_end_of_text(tokenizer, folder)


def load_checkpoint_dir(folder, others=()):
    """The model in a Hugging Face folder and its tokenizer: (GPTModel in eval mode, tiktoken.Encoding or None).

    Reads config.json, model.safetensors (or its numbered parts), and vocab.json with merges.txt (or tokenizer.json).
    Rows of the embedding (and of an untied head) beyond the tokenizer's ids, often put there to round the number up,
    are left out: the model must not choose what no text belongs to. Without a tokenizer, config.json decides.
    `others` names tensors that belong to something else, such as a classifier, and are left alone.
    Raises FileNotFoundError or ValueError, naming the file or the tensor.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    files, tokenizer = _weight_files(folder), load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.n_vocab > config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.n_vocab} tokens, the model {config.vocab_size}")
    model = load_weights(config, files, others)
    if tokenizer is not None and tokenizer.n_vocab < config.vocab_size:
        model = load_weights(replace(config, vocab_size=tokenizer.n_vocab), files, others)
    return model, tokenizer


def _weight_files(folder):
    """model.safetensors in `folder`, or its numbered parts."""
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model.safetensors: weights are read from safetensors files only")
    return files


def load_score(folder):
    """The output layer [L, D] of the classifier in a Hugging Face folder, or None, and the names of its L labels.

    Raises ValueError, naming the file, where they do not fit the model or each other.
    """
    folder = Path(folder)
    settings, names = read_json(folder / "config.json"), []
    file, score = find_tensors(_weight_files(folder)).get("score.weight", (None, None))
    if score is None:
        return None, names
    if score.dim() != 2 or not len(score) or score.shape[1] != settings["n_embd"] or not score.is_floating_point():
        found = f"{list(score.shape)} {str(score.dtype).removeprefix('torch.')}"
        raise ValueError(f"{file}: score.weight is {found}; a classifier has [labels, {settings['n_embd']}] for it")
    found = settings.get("id2label") or {}
    names = [found.get(str(i), f"LABEL_{i}") if isinstance(found, dict) else None for i in range(len(score))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / 'config.json'}: id2label must give each number of a label its name")
    return score, names


def _read_config(file):
    """The GPTConfig in a config.json. Raises ValueError where that describes another architecture."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: it is no folder of a Hugging Face checkpoint")
    found = read_json(file)
    for key, allowed in _FIXED.items():
        if found.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{file}: {key} is {found[key]!r:.60}; this model has {allowed[0]!r}")
    sizes = {key: found.get(key) for key in ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer")}
    for key, size in sizes.items():
        if type(size) is not int or not 1 <= size < 2**31:
            raise ValueError(f"{file} does not describe a GPT-2: {key} is {size!r:.50}; it must be a positive integer")
    if found.get("n_inner") not in (None, 4 * sizes["n_embd"]):
        wanted = 4 * sizes["n_embd"]
        raise ValueError(f"{file}: n_inner is {found['n_inner']!r:.60}; this model has 4 * n_embd, {wanted}")
    dropout, tied = found.get("resid_pdrop", 0.1), found.get("tie_word_embeddings", True)
    if type(dropout) not in (int, float):
        raise ValueError(f"{file}: resid_pdrop is {dropout!r:.60}; it must be a number")
    if type(tied) is not bool:
        raise ValueError(f"{file}: tie_word_embeddings is {tied!r:.60}; it must be true or false")
    try:
        return GPTConfig(*sizes.values(), drop_rate=dropout, tie_weights=tied)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def export_checkpoint(model, tokenizer, folder, chat_template=None, *, tensors=None, config=None):
    """Write `model` and `tokenizer` (a tiktoken.Encoding, or None) as a folder that `transformers` loads.

    The numbers keep their dtype. `chat_template` (Jinja) goes into tokenizer_config.json. For a model with another
    head, `tensors` take the place of `published_tensors(model)`, and `config` is added to config.json. All files are
    written aside first and then renamed one by one: each is at every moment whole, the old one or the new one. A file
    that is a link is replaced too; what the link leads to stays as it is.
    Raises OSError where the folder cannot be written, ValueError for a tokenizer that is not of GPT-2's kind.
    """
    folder, bpe, eos, moved = Path(folder), tokenizer and from_tiktoken(tokenizer), None, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _EXPORTED:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{name} is a folder there")
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
            aside = Path(aside)
            tensors = published_tensors(model) if tensors is None else tensors
            save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
            if bpe:
                eos = bpe.special_tokens.get(END_OF_TEXT)
                bpe.save(aside)
                _write_json(aside / "tokenizer_config.json", _tokenizer_config(bpe, model.config, chat_template))
            ids = {"bos_token_id": eos, "eos_token_id": eos}
            _write_json(aside / "config.json", _config_json(model) | ids | (config or {}))
            _write_json(aside / "generation_config.json", ids | {"pad_token_id": eos})
            shutil.copymode(aside / "config.json", aside / "model.safetensors")  # made for its owner's eyes only
            for file in sorted(aside.iterdir(), key=lambda file: (file.name != "model.safetensors", file)):
                os.replace(file, folder / file.name)
                moved.append(file.name)
        for stale in _OTHER_TOKENIZER_FILES if bpe else ():  # transformers would prefer these
            (folder / stale).unlink(missing_ok=True)
        for left in folder.glob(f"{_ASIDE}*"):  # by an export that was killed
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        state = f"only {', '.join(moved)} is new there" if moved else "an older checkpoint there is untouched"
        raise OSError(f"{folder} could not be written ({error}); {state}") from None


def published_tensors(model):
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


def _config_json(model):
    """What config.json says of `model`, in the words of transformers' GPT2Config."""
    c = model.config
    dtype = str(model.token_embedding.weight.dtype).removeprefix("torch.")
    return {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": dtype, "vocab_size": c.vocab_size,
        "n_positions": c.context_length, "n_ctx": c.context_length, "n_embd": c.emb_dim, "n_head": c.n_heads,
        "n_layer": c.n_layers, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "attn_pdrop": c.drop_rate, "embd_pdrop": c.drop_rate, "resid_pdrop": c.drop_rate,
        "tie_word_embeddings": c.tie_weights,
    }  # fmt: skip


def _tokenizer_config(bpe, config, chat_template):
    """What tokenizer_config.json says: the special tokens, the longest input, and how to write a chat, if given."""
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    settings = {
        "tokenizer_class": "GPT2Tokenizer", "model_max_length": config.context_length, "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token} | flags for token, i in bpe.special_tokens.items()},
    }  # fmt: skip
    if END_OF_TEXT in bpe.special_tokens:
        settings |= {f"{kind}_token": END_OF_TEXT for kind in ("bos", "eos", "unk", "pad")}
    return settings if chat_template is None else settings | {"chat_template": chat_template}


def _write_json(file, content):
    file.write_text(valid_unicode(json.dumps(content, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")


def main(argv=None):
    """`python -m shared.weights`: read a checkpoint folder and, if asked, write it as a GGUF file."""
    parser = argparse.ArgumentParser(prog="python -m shared.weights", description=main.__doc__)
    parser.add_argument("folder", metavar="DIR", help="a checkpoint in Hugging Face's layout")
    parser.add_argument("--gguf", metavar="FILE", help="write it as this GGUF file, for llama.cpp or Ollama")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # a folder's name may be no text
    try:
        model, tokenizer = load_checkpoint_dir(args.folder)
        print(f"{args.folder}: {count_parameters(model):,} parameters, {model.config}")
        if args.gguf:
            from shared.gguf_export import export_gguf  # its package is not needed otherwise

            export_gguf(args.folder, args.gguf)
            print(f"{args.gguf}: {Path(args.gguf).stat().st_size:,} bytes")
    except (ValueError, OSError, ImportError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
