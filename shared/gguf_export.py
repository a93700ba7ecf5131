"""A checkpoint folder as one GGUF file, the format of llama.cpp and Ollama. Called by `python -m shared.weights`."""

import os
import tempfile
from pathlib import Path

import gguf

from shared.tokenizer import END_OF_TEXT, from_tiktoken, valid_unicode
from shared.tokenizer_files import byte_to_char
from shared.weights import load_checkpoint_dir, published_name


def export_gguf(folder, file):
    """Write the checkpoint in `folder` as the GGUF file `file`: weights in float32, tokenizer, settings.

    Layout of the names and keys: the package `gguf`, which llama.cpp keeps. Raises ValueError where there is no
    tokenizer.
    """
    model, tokenizer = load_checkpoint_dir(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer, and a GGUF file holds one")
    bpe = from_tiktoken(tokenizer)
    try:
        with tempfile.TemporaryDirectory(prefix=".partial-gguf-", dir=Path(file).parent) as aside:
            _write(Path(aside, "gguf"), model, tokenizer.name, bpe)
            os.replace(Path(aside, "gguf"), file)
    except OSError as error:
        raise OSError(f"{file} could not be written ({error}); an older file there is untouched") from None


def _write(file, model, name, bpe):
    """Write the new file `file`."""
    config, char = model.config, byte_to_char()
    names = ["".join(char[b] for b in token) for token in bpe.tokens]
    kinds = [gguf.TokenType.NORMAL] * len(names) + [gguf.TokenType.CONTROL] * len(bpe.special_tokens)
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_name(valid_unicode(name))
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.emb_dim)
    writer.add_feed_forward_length(4 * config.emb_dim)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names + list(bpe.special_tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{names[left]} {names[right]}" for left, right in bpe.merges])
    if END_OF_TEXT in bpe.special_tokens:
        writer.add_bos_token_id(bpe.eot_token)
        writer.add_eos_token_id(bpe.eot_token)
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layers)
    for name, parameter in model.named_parameters():  # GGUF's matrices are [out, in], like ours
        name = theirs.get_name(published_name(name), try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, parameter.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
