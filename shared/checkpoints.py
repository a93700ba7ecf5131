"""Checkpoints: a model and its tokenizer as a folder in Hugging Face's layout, read and written.

    model, tokenizer = load_base()           # what chapters 4 and 5 start from
    save_model(model, tokenizer, "my_gpt")   # AutoModelForCausalLM.from_pretrained("my_gpt") loads it
    model, tokenizer = load_model("my_gpt")
    python -m shared.checkpoints my_gpt --gguf my_gpt.gguf
    model, tokenizer = load_base("smollm2")  # SmolLM2-135M-Instruct, from its GGUF file
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from shared import data, gguf, gpt, llama_files
from shared.files import command_line, read_json, write_together
from shared.llama import LlamaModel
from shared.runtime import scale
from shared.smollm_tokenizer import SmolLMEncoding, from_tokenizer_json, smollm_encoding, write_tokenizer_json
from shared.tokenizer import END_OF_TEXT, BPETokenizer, from_tiktoken, load_tokenizer, valid_unicode, with_end_of_text
from shared.tokenizer_files import has_tokenizer, read_bpe_files, tokenizer_config
from shared.weights import ARCHITECTURES, architecture_of, check_tensors, empty_model, load_weights, put_weights

COURSE_BASE = data.places.ROOT / "shared" / "course_base"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json", "special_tokens_map.json",
                   "chat_template.jinja")  # of which a reader takes the first that it likes


def load_gpt2(name="gpt2"):
    """GPT-2 as published (Radford et al. 2019): (GPTModel, tiktoken.Encoding). Raises ValueError or DownloadError."""
    if name not in gpt.GPT2_CONFIGS:
        raise ValueError(f"there is no GPT-2 called {name!r}; there are {', '.join(gpt.GPT2_CONFIGS)}")
    weights, *bpe = (data.fetch(part, sample_ok=False) for part in (f"{name}_weights", "gpt2_vocab", "gpt2_encoder"))
    model = load_weights(empty_model(gpt.GPT2_CONFIGS[name]), [weights], gpt.from_published)
    return model, BPETokenizer(*read_bpe_files(*bpe)).to_tiktoken("gpt2")


def load_gguf(file):
    """The Llama in a GGUF file, such as SmolLM2: (LlamaModel in float32, SmolLMEncoding whose name is the file's).

    Raises ValueError, naming the file, where it is damaged, or of another architecture or encoding.
    """
    settings, stored = gguf.read_gguf(file)
    try:
        config, pre = llama_files.config_from_gguf(settings), settings.get("tokenizer.ggml.pre")
        if pre != "smollm":
            raise ValueError(f"tokenizer.ggml.pre is {pre!r:.60}; the encoding known here is 'smollm'")
        names, kinds = settings["tokenizer.ggml.tokens"], settings.get("tokenizer.ggml.token_type", ())
        special = {name: i for i, (name, kind) in enumerate(zip(names, kinds, strict=False)) if kind == gguf.CONTROL}
        encoding = smollm_encoding(Path(file).stem, names, special)
        tensors = llama_files.from_gguf({name: gguf.dequantize(*one) for name, one in stored.items()}, config)
        rows = len(tensors.get("token_embedding.weight", ()))
        if rows != len(names):
            raise ValueError(f"its vocabulary has {len(names)} tokens, but its embedding {rows} rows")
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    model = empty_model(config)
    check_tensors(tensors, model, [file])
    return put_weights(model, tensors), encoding


def load_base(path=None, size="gpt2"):
    """The model that later chapters start from: (model, tiktoken.Encoding whose name is the model's).

    The folder `path` (or "smollm2", which is fetched), else what LLM_BASE names; else the course base at quick scale,
    at full scale GPT-2 of this `size`, or the course base where it is not available, and a line says so. Raises
    ValueError or FileNotFoundError, naming the folder, where it holds no model or no tokenizer that knows
    <|endoftext|>.
    """
    path = path or os.environ.get("LLM_BASE", "").strip()
    if path == "smollm2":
        return load_gguf(data.fetch("smollm2"))
    path = path and data.places.ROOT / os.path.expanduser(path)
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
    tokenizer = _tokenizer_of(folder) if has_tokenizer(folder) else None
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


def _tokenizer_of(folder):
    """The encoding in a folder: of SmolLM2's kind, if its tokenizer.json says so, else of GPT-2's."""
    whole = folder / "tokenizer.json"
    found = from_tokenizer_json(read_json(whole), folder.resolve().name) if whole.is_file() else None
    return found or load_tokenizer(folder)


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
    smol = isinstance(tokenizer, SmolLMEncoding)
    (tensors, config), eos = publish(model, tokenizer), None
    bpe = tokenizer and not smol and from_tiktoken(tokenizer)
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
        if smol:
            eos = tokenizer.end_of_turn
            write_tokenizer_json(tokenizer, aside)
            settled = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.config.context_length,
                       "eos_token": tokenizer.decode([eos]), "clean_up_tokenization_spaces": False}  # fmt: skip
            settled |= {} if chat_template is None else {"chat_template": chat_template}
            _write_json(aside / "tokenizer_config.json", settled)
        ids = {"bos_token_id": eos, "eos_token_id": eos}
        _write_json(aside / "config.json", config | ids | (settings or {}))
        _write_json(aside / "generation_config.json", ids | {"pad_token_id": eos})
        shutil.copymode(aside / "config.json", aside / "model.safetensors")  # made for its owner's eyes only
        stale = {*TOKENIZER_FILES} - {file.name for file in aside.iterdir()} if tokenizer else ()
    for name in stale:  # they would be read in place of the new
        Path(folder, name).unlink(missing_ok=True)


def publish(model, tokenizer):
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
    if tokenizer is None:
        raise ValueError(f"{file}: there is no tokenizer, and a GGUF file holds one")
    published = publish(model, tokenizer)[0]
    if isinstance(model, LlamaModel):
        settings = gguf.llama_settings(tokenizer.name, model.config, tokenizer)
        gguf.write_gguf(file, "llama", settings, llama_files.to_gguf(model))
    else:
        settings = gguf.gpt2_settings(tokenizer.name, model.config, from_tiktoken(tokenizer))
        gguf.write_gguf(file, "gpt2", settings, gguf.gpt2_tensors(published, model.config.n_layers))


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
