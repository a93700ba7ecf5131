"""Checkpoints: a model and its tokenizer as a folder in Hugging Face's layout, read and written.

    model, tokenizer = load_base()           # what chapters 4 and 5 start from
    save_model(model, tokenizer, "my_gpt")   # AutoModelForCausalLM.from_pretrained("my_gpt") loads it
    model, tokenizer = load_model("my_gpt")
    python -m shared.checkpoints my_gpt --gguf my_gpt.gguf

Weights are read from safetensors files only, never from a pickle, which could run code.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from shared import data, gpt
from shared.files import command_line, read_json, write_together
from shared.runtime import scale
from shared.tokenizer import END_OF_TEXT, BPETokenizer, from_tiktoken, load_tokenizer, valid_unicode, with_end_of_text
from shared.tokenizer_files import has_tokenizer, read_bpe_files, tokenizer_config

COURSE_BASE = data.places.ROOT / "shared" / "course_base"
# model_type in config.json: the module that knows this architecture's names and settings, its config, its model.
ARCHITECTURES = {"gpt2": (gpt, gpt.GPTConfig, gpt.GPTModel)}
OTHER_TOKENIZER_FILES = ("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja")


class _SkipInit(TorchFunctionMode):
    """While it is on, `torch.nn.init` does nothing: on "meta" it would import a second's worth of modules."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        skipped = getattr(function, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if skipped else function(*args, **kwargs or {})


def architecture_of(config):
    """(module, class of the model) for models with this config. Raises ValueError for one of no known class."""
    for module, config_class, model_class in ARCHITECTURES.values():
        if isinstance(config, config_class):
            return module, model_class
    raise ValueError(f"there are no checkpoints for a {type(config).__name__}, only for {', '.join(ARCHITECTURES)}")


def empty_model(config):
    """A model with this config on the device "meta": its tensors have shapes, but no memory and no numbers."""
    with torch.device("meta"), _SkipInit():
        return architecture_of(config)[1](config)


def find_tensors(files):
    """{published name: memory-mapped tensor} of all tensors in the safetensors `files`. Raises ValueError."""
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file (cut off in a download?): {error}") from None
    return tensors


def load_weights(model, files, from_published, extra=()):
    """An `empty_model` with the weights of the safetensors `files`, in float32, on the CPU, in eval mode.

    Its tensors lie in the memory-mapped files, and what training changes is copied page by page: a file must not be
    written to while the model lives (replacing it is fine). `extra` names tensors that may stand beside the model's.
    """
    tensors, weights = from_published(find_tensors(files), model.state_dict()), {}
    check_tensors(tensors, model, files, extra)
    for name, parameter in model.named_parameters():
        weights[name] = tensors[name][: len(parameter)].float()  # rows after the vocabulary are padding
    model.load_state_dict(weights, strict=False, assign=True)
    if model.config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model.eval()


def check_tensors(tensors, model, files, extra=()):
    """Raise ValueError, naming the tensor, unless `tensors` {our name: tensor} are those of `model`, found in `files`.

    The embedding and the head may have more rows than the vocabulary; a tied head may be there or not.
    """
    where, wanted = ", ".join(map(str, files)), dict(model.named_parameters())
    tied = {"head.weight"} if model.config.tie_weights else set()
    odd = {"lacks": wanted.keys() - tensors.keys(), "has unknown": tensors.keys() - wanted.keys() - {*extra} - tied}
    if any(odd.values()):
        kind = f"{type(model).__name__} of {model.config.n_layers} layers, tie_weights={model.config.tie_weights}"
        said = [f"{what} {', '.join(sorted(names)[:3])} ({len(names)})" for what, names in odd.items() if names]
        raise ValueError(f"{where} is no {kind}: it {' and '.join(said)}")
    for name, parameter in wanted.items():
        tensor, longer = tensors[name], name in ("token_embedding.weight", "head.weight") and tensors[name].dim()
        if (tensor[: len(parameter)] if longer else tensor).shape != parameter.shape or not tensor.is_floating_point():
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{where}: {name} is {found}; the model has {list(parameter.shape)} for it")
    if tied & tensors.keys() and not torch.equal(tensors["head.weight"], tensors["token_embedding.weight"]):
        raise ValueError(f"{where}: head.weight is not equal to token_embedding.weight, to which the config ties it")


def load_gpt2(name="gpt2"):
    """GPT-2 as published (Radford et al. 2019): (GPTModel, tiktoken.Encoding). Raises ValueError or DownloadError."""
    if name not in gpt.GPT2_CONFIGS:
        raise ValueError(f"there is no GPT-2 called {name!r}; there are {', '.join(gpt.GPT2_CONFIGS)}")
    weights, *bpe = (data.fetch(part, sample_ok=False) for part in (f"{name}_weights", "gpt2_vocab", "gpt2_encoder"))
    model = load_weights(empty_model(gpt.GPT2_CONFIGS[name]), [weights], gpt.from_published)
    return model, BPETokenizer(*read_bpe_files(*bpe)).to_tiktoken("gpt2")


def load_base(path=None, size="gpt2"):
    """The model that later chapters start from: (model, tiktoken.Encoding whose name is the model's).

    The folder `path`, else that of LLM_BASE; else the course base at quick scale, at full scale GPT-2 of this
    `size`, or the course base where it is not available, and a line says so. Raises ValueError or FileNotFoundError,
    naming the folder, where it holds no model or no tokenizer that knows <|endoftext|>.
    """
    if not path and os.environ.get("LLM_BASE", "").strip():
        path = data.places.ROOT / os.path.expanduser(os.environ["LLM_BASE"].strip())
    if not path and scale() == "full":
        try:
            return load_gpt2(size)
        except data.DownloadError as error:
            print(f"GPT-2 is not available ({str(error).splitlines()[0]}): using the course base")
    model, tokenizer = load_model(path or COURSE_BASE)
    return model, with_end_of_text(tokenizer, path or COURSE_BASE)


def load_model(folder, extra=()):
    """The model in a Hugging Face folder and its tokenizer: (model in eval mode, tiktoken.Encoding or None).

    Reads config.json, model.safetensors (or its numbered parts), and vocab.json with merges.txt (or tokenizer.json).
    Rows of the embedding (and of an untied head) beyond the tokenizer's ids are left out: no text belongs to them.
    `extra` names tensors that belong to something else, such as a classifier. Raises FileNotFoundError or ValueError,
    naming the file or the tensor.
    """
    folder = Path(folder)
    settings, files = open_folder(folder)
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    model_type = settings.get("model_type", "gpt2")
    try:
        if model_type not in [*ARCHITECTURES]:
            raise ValueError(f"model_type is {model_type!r:.60}; it must be one of {', '.join(ARCHITECTURES)}")
        module = ARCHITECTURES[model_type][0]
        config = module.config_from_json(settings)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    if tokenizer is not None and tokenizer.n_vocab > config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.n_vocab} tokens, the model {config.vocab_size}")
    model = load_weights(empty_model(config), files, module.from_published, extra)
    if tokenizer is not None and tokenizer.n_vocab < config.vocab_size:
        cut = replace(config, vocab_size=tokenizer.n_vocab)
        model = load_weights(empty_model(cut), files, module.from_published, extra)
    return model, tokenizer


def open_folder(folder):
    """(what config.json says, the files with the weights) of a Hugging Face folder. Raises FileNotFoundError."""
    config, whole = Path(folder) / "config.json", Path(folder) / "model.safetensors"
    if missing := next((path for path in (config.parent, config) if not path.exists()), None):
        raise FileNotFoundError(f"{missing} does not exist; a Hugging Face checkpoint is a folder with a config.json")
    files = [whole] if whole.is_file() else sorted(Path(folder).glob("model-*-of-*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model.safetensors: weights are read from safetensors files only")
    return read_json(config), files


def save_model(model, tokenizer, folder, chat_template=None, *, extra=None, settings=None):
    """Write `model` and `tokenizer` (a tiktoken.Encoding, or None) as a folder that `transformers` loads.

    `chat_template` (Jinja) goes into tokenizer_config.json. A classifier adds tensors of its own, `extra`, and
    `settings` for config.json. Files are written atomically. Raises OSError where they cannot, ValueError for a
    tokenizer not of GPT-2's kind, or none where one is, and as `publish` does.
    """
    if tokenizer is None and has_tokenizer(Path(folder)):  # they would be read as one
        raise ValueError(f"{folder} holds a tokenizer, and this model comes without one: choose another folder")
    (tensors, config), bpe, eos = publish(model, tokenizer), tokenizer and from_tiktoken(tokenizer), None
    with write_together(folder) as aside:
        try:
            save_file(tensors | (extra or {}), aside / "model.safetensors", {"format": "pt"})
        except SafetensorError as error:
            raise OSError(error) from None
        if bpe:
            eos = bpe.special_tokens.get(END_OF_TEXT)
            bpe.save(aside)
            settled = tokenizer_config(bpe, model.config.context_length, END_OF_TEXT, chat_template)
            _write_json(aside / "tokenizer_config.json", settled)
        ids = {"bos_token_id": eos, "eos_token_id": eos}
        _write_json(aside / "config.json", config | ids | (settings or {}))
        _write_json(aside / "generation_config.json", ids | {"pad_token_id": eos})
        shutil.copymode(aside / "config.json", aside / "model.safetensors")  # made for its owner's eyes only
    for stale in OTHER_TOKENIZER_FILES if bpe else ():  # transformers would prefer these
        Path(folder, stale).unlink(missing_ok=True)


def publish(model, tokenizer=None):
    """What model.safetensors and config.json hold of `model`: ({published name: tensor}, {key: value}).

    Raises ValueError for a tensor that is not finite or not a plain model's, and for a tokenizer with more tokens.
    """
    module, n_vocab = architecture_of(model.config)[0], model.config.vocab_size
    if tokenizer is not None and tokenizer.n_vocab > n_vocab:
        raise ValueError(f"the model to be saved has {n_vocab} tokens, its tokenizer {tokenizer.n_vocab}")
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"the model to be saved: {name} is not finite, so its weights are damaged")
    check_tensors(model.state_dict(), empty_model(model.config), ["the model to be saved"])
    dtype = str(model.token_embedding.weight.dtype).removeprefix("torch.")
    return module.to_published(model), module.config_to_json(model.config) | {"dtype": dtype}


def save_gguf(model, tokenizer, file):
    """Write `model` and `tokenizer` as one GGUF file, for llama.cpp or Ollama. Raises OSError or ValueError."""
    from shared.gguf import write_gguf  # its package is not needed otherwise

    if tokenizer is None:
        raise ValueError(f"{file}: there is no tokenizer, and a GGUF file holds one")
    write_gguf(file, tokenizer.name, model.config, publish(model, tokenizer)[0], from_tiktoken(tokenizer))


def _write_json(file, content):
    file.write_text(valid_unicode(json.dumps(content, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")


def main(argv=None):
    """`python -m shared.checkpoints`: read a checkpoint folder and, if asked, write it as a GGUF file."""
    parser = argparse.ArgumentParser(prog="python -m shared.checkpoints", description=main.__doc__)
    parser.add_argument("folder", metavar="DIR", help="a checkpoint in Hugging Face's layout")
    parser.add_argument("--gguf", metavar="FILE", help="write it as this GGUF file, for llama.cpp or Ollama")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="replace")  # a folder's name may be no text
    try:
        model, tokenizer = load_model(args.folder)
        print(f"{args.folder}: {gpt.count_parameters(model):,} parameters, {model.config}")
        if args.gguf:
            save_gguf(model, tokenizer, args.gguf)
            print(f"{args.gguf}: {Path(args.gguf).stat().st_size:,} bytes")
    except (ValueError, OSError, ImportError) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    command_line(main)
