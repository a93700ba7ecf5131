"""GGUF, the file format of llama.cpp and Ollama: one file with settings, tokenizer and weights.

The keys and the names of the tensors are those of the package `gguf`, which llama.cpp keeps. `save_gguf` in
shared/checkpoints.py writes a model with it.
"""

import gguf

from shared.files import write_atomically
from shared.gpt import is_transposed
from shared.tokenizer import END_OF_TEXT, valid_unicode
from shared.tokenizer_files import byte_to_char


def write_gguf(file, name, config, tensors, bpe):
    """Write a GPT-2 as the GGUF file `file`, in float32 and atomically. Raises OSError where it cannot be written.

    `name` is the model's, `config` its GPTConfig, `tensors` its weights as `gpt.to_published` gives them, `bpe` its
    BPETokenizer.
    """
    with write_atomically(file) as part:
        char = byte_to_char()
        names = ["".join(char[b] for b in token) for token in bpe.tokens]
        kinds = [gguf.TokenType.NORMAL] * len(names) + [gguf.TokenType.CONTROL] * len(bpe.special_tokens)
        writer = gguf.GGUFWriter(part, "gpt2")
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
        for published, tensor in tensors.items():
            tensor = tensor.T if is_transposed(published) else tensor  # GGUF's matrices are [out, in], like ours
            name = theirs.get_name(published, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(name, tensor.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
