"""GGUF, the file format of llama.cpp and Ollama: one file with settings, tokenizer and weights, read and written.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. It is read by hand here, and written with the
package `gguf`, which llama.cpp keeps; the keys and the names of the tensors are that package's. `load_gguf` and
`save_gguf` in shared/checkpoints.py make a model of a file, and a file of a model.
"""

import math
import struct

import numpy as np
import torch

from shared.files import write_atomically
from shared.gpt import is_transposed
from shared.smollm_tokenizer import to_tokenizer_json
from shared.tokenizer import END_OF_TEXT, valid_unicode
from shared.tokenizer_files import byte_to_char

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
NORMAL, CONTROL = 1, 3  # kinds of tokens
# How numbers are stored: {number of the kind: (its name, numbers in a block, bytes of a block)}
KINDS = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}


class GGUFBytes:
    """The bytes of a file, taken one after the other. Raises ValueError where there are not enough."""

    def __init__(self, data):
        self.data, self.place = data, 0

    def take(self, n):
        if n > len(self.data) - self.place:
            raise ValueError(f"it ends at byte {len(self.data):,}, in the middle of what it should hold: cut off?")
        self.place += n
        return self.data[self.place - n : self.place]

    def number(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize(form)))[0]

    def text(self):
        return bytes(self.take(self.number("Q"))).decode("utf-8", errors="replace")

    def value(self, kind):
        """A setting of this kind: a number, a text, or a list of either."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a setting is of kind {kind}, which GGUF does not have")
        kind, n = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            return np.frombuffer(self.take(n * struct.calcsize(NUMBERS[kind])), "<" + NUMBERS[kind]).tolist()
        return [self.value(kind) for _ in range(min(n, len(self.data)))]


def dequantize(kind, data, shape):
    """The float32 tensor of this shape that the bytes `data` (uint8) hold in the format with this number.

    Blocks of 32 numbers share a scale d and, in Q4_1, a smallest value m, both float16: x = d * q in Q8_0 (q from -128
    to 127), x = d * q + m in Q4_1 (q from 0 to 15; the first 16 are the low halves of 16 bytes).
    """
    name, _, size = KINDS[kind]
    if name in ("F32", "F16"):
        x = data.view(np.float32 if name == "F32" else np.float16).astype(np.float32)
        return torch.from_numpy(x).view(shape)
    blocks = data.reshape(-1, size)
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)  # [blocks, 1]
    if name == "Q8_0":
        x = d * blocks[:, 2:].view(np.int8)
    else:
        m, q = blocks[:, 2:4].copy().view(np.float16).astype(np.float32), blocks[:, 4:]
        x = d * np.concatenate([q & 15, q >> 4], axis=1) + m
    return torch.from_numpy(x.astype(np.float32, copy=False)).view(shape)


def read_gguf(file):
    """(settings {key: value}, tensors {name: (kind, bytes, shape)}) of a GGUF file; `dequantize` makes them numbers.

    The bytes lie in the memory-mapped file. Raises ValueError, naming the file, where it is none, cut off or damaged,
    or holds tensors of a kind that is not known here.
    """
    try:
        data = np.memmap(file, np.uint8, "r")
    except ValueError:
        raise ValueError(f"{file} is empty") from None
    try:
        return _read(GGUFBytes(data))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as GGUF: {error}") from None


def _read(source):
    if bytes(source.take(4)) != b"GGUF":
        raise ValueError("it does not begin with the letters GGUF")
    if (version := source.number("I")) not in (2, 3):
        raise ValueError(f"it has version {version}; 2 and 3 are known here")
    n_tensors, n_settings = source.number("Q"), source.number("Q")
    settings = {source.text(): source.value(source.number("I")) for _ in range(n_settings)}
    places, tensors = {}, {}
    for _ in range(n_tensors):
        name = source.text()
        shape = [source.number("Q") for _ in range(source.number("I"))][::-1]  # ours: the last dimension is the inner
        places[name] = (shape, source.number("I"), source.number("Q"))
    step = settings.get("general.alignment", 32)
    start = -(-source.place // step) * step
    for name, (shape, kind, offset) in places.items():
        if kind not in KINDS:
            known = ", ".join(name for name, *_ in KINDS.values())
            raise ValueError(f"{name} is stored in format {kind}; known here are {known}")
        _, numbers, size = KINDS[kind]
        if not shape or shape[-1] % numbers:
            raise ValueError(f"{name} has shape {shape}, whose rows are no blocks of {numbers}")
        source.place = min(start + offset, len(source.data))
        tensors[name] = (kind, source.take(math.prod(shape) // numbers * size), shape)
    return settings, tensors


# --- Writing


def write_gguf(file, architecture, settings, tensors, kinds=None):
    """Write a GGUF file, atomically: `settings` {key: value} and `tensors` {GGUF's name: tensor}, in float32.

    `kinds` {name: "Q8_0" or "Q4_1"} names those that are stored in fewer bits. Raises OSError where the file cannot be
    written.
    """
    import gguf  # only who writes a file needs the package

    try:
        with write_atomically(file) as part:
            writer = gguf.GGUFWriter(part, architecture)
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
                   list: writer.add_array}  # fmt: skip
            for key, value in settings.items():
                add[type(value)](key, value)
            for name, tensor in tensors.items():
                kind = gguf.GGMLQuantizationType[(kinds or {}).get(name, "F32")]
                values = tensor.detach().float().cpu().contiguous().numpy()
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except OSError as error:
        raise OSError(f"{file} could not be written ({error}); an older file there is untouched") from None


def gpt2_settings(name, config, bpe):
    """What a GGUF file says of a GPT-2 called `name`, with this GPTConfig and BPETokenizer."""
    char = byte_to_char()
    names = ["".join(char[b] for b in token) for token in bpe.tokens]
    ends = {f"tokenizer.ggml.{kind}_token_id": bpe.special_tokens.get(END_OF_TEXT) for kind in ("bos", "eos")}
    return {
        "general.name": valid_unicode(name), "general.file_type": 0, "gpt2.context_length": config.context_length,
        "gpt2.embedding_length": config.emb_dim, "gpt2.feed_forward_length": 4 * config.emb_dim,
        "gpt2.block_count": config.n_layers, "gpt2.attention.head_count": config.n_heads,
        "gpt2.attention.layer_norm_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": names + list(bpe.special_tokens),
        "tokenizer.ggml.token_type": [NORMAL] * len(names) + [CONTROL] * len(bpe.special_tokens),
        "tokenizer.ggml.merges": [f"{names[left]} {names[right]}" for left, right in bpe.merges],
        **{key: value for key, value in ends.items() if value is not None},
    }  # fmt: skip


def gpt2_tensors(tensors, n_layers):
    """A GPT-2's weights under GGUF's names, from those that `gpt.to_published` gives."""
    import gguf

    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, n_layers)
    return {  # GGUF's matrices are [out, in], like ours
        theirs.get_name(name, try_suffixes=(".weight", ".bias")): tensor.T if is_transposed(name) else tensor
        for name, tensor in tensors.items()
    }


def llama_settings(name, config, encoding, chat_template=None):
    """What a GGUF file says of a Llama called `name`, with this LlamaConfig and SmolLMEncoding."""
    found = to_tokenizer_json(encoding)["model"]
    special = encoding._special_tokens.values()
    return {
        "general.name": valid_unicode(name), "general.file_type": 0, "llama.context_length": config.context_length,
        "llama.embedding_length": config.emb_dim, "llama.feed_forward_length": config.hidden_dim,
        "llama.block_count": config.n_layers, "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads, "llama.rope.freq_base": float(config.rope_base),
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps, "llama.vocab_size": config.vocab_size,
        "llama.rope.dimension_count": config.head_dim, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(found["vocab"]), "tokenizer.ggml.merges": found["merges"],
        "tokenizer.ggml.token_type": [CONTROL if i in special else NORMAL for i in range(encoding.n_vocab)],
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.eos_token_id": encoding.end_of_turn,
        **({} if chat_template is None else {"tokenizer.chat_template": chat_template}),
    }  # fmt: skip
