"""SmolLM2's byte-level encoding as a tiktoken.Encoding, and as the tokenizer.json that transformers reads.

It is GPT-2's kind of encoding with two differences: each digit is a token of its own, and 21 of the 256 bytes
have no token of their own.
"""

import json

import tiktoken

from shared.tokenizer import apply_merges, valid_unicode
from shared.tokenizer_files import byte_to_char

# GPT-2's split, after every digit was cut off; blanks before a digit stay whole.
SMOLLM_SPLIT = (
    r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s{1,65536}(?=\p{N})|\s{1,65536}(?!\S)|\s+"
)


class SmolLMEncoding(tiktoken.Encoding):
    """A tiktoken.Encoding that leaves out bytes that no token stands for, as the libraries of Hugging Face do."""

    def __init__(self, name, tokens, special_tokens):
        """`tokens` {bytes: id}, `special_tokens` {name: id}; together the ids from 0 on."""
        self.size = len(tokens) + len(special_tokens)
        self.missing = [b for b in range(256) if bytes([b]) not in tokens]
        spare = {bytes([b]): self.size + i for i, b in enumerate(self.missing)}  # tiktoken panics without them
        super().__init__(name, pat_str=SMOLLM_SPLIT, mergeable_ranks=tokens | spare, special_tokens=special_tokens)

    @property
    def n_vocab(self):
        return self.size

    @property
    def end_of_turn(self):
        """The id with which an answer ends: of <|im_end|>, where there is one."""
        return self._special_tokens.get("<|im_end|>", self.eot_token)

    def encode_ordinary(self, text):
        return [i for i in super().encode_ordinary(valid_unicode(text)) if i < self.size]

    def encode(self, text, **settings):
        return [i for i in super().encode(valid_unicode(text), **settings) if i < self.size]


def smollm_encoding(name, names, special_tokens):
    """The encoding whose ids are the places in `names`, written in GPT-2's characters; `special_tokens` {name: id}.

    Raises ValueError for a name that is no sequence of bytes, or one that is there twice.
    """
    byte = {char: b for b, char in byte_to_char().items()}
    tokens = {}
    for i, text in enumerate(names):
        if text in special_tokens:
            continue
        if not text or any(char not in byte for char in text):
            raise ValueError(f"token {i}, {text!r:.40}, is not written in the characters of a byte-level encoding")
        tokens[bytes(byte[char] for char in text)] = i
    if len(tokens) + len(special_tokens) != len(names):
        raise ValueError("two tokens of the vocabulary are the same")
    return SmolLMEncoding(name, tokens, special_tokens)


def to_tokenizer_json(encoding):
    """What tokenizer.json says of a SmolLMEncoding, for Hugging Face's libraries, as a dict."""
    char, ranks = byte_to_char(), {t: i for t, i in encoding._mergeable_ranks.items() if i < encoding.n_vocab}
    names = {token: "".join(char[b] for b in token) for token in ranks}
    merges, pairs, ids = [], {}, {b: ranks.get(bytes([b]), -1) for b in range(256)}
    by_id = {i: token for token, i in ranks.items()}
    for token, i in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = apply_merges([ids[b] for b in token], pairs)
            pairs[left, right] = i
            merges.append(f"{names[by_id[left]]} {names[by_id[right]]}")
    vocab = {names[token]: i for token, i in ranks.items()} | encoding._special_tokens
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": token} | flags for token, i in encoding._special_tokens.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "merges": merges},
    }  # fmt: skip


def from_tokenizer_json(found, name):
    """The SmolLMEncoding that tokenizer.json, read as a dict, describes; None where it is of another kind."""
    try:
        kinds = [one["type"] for one in found["pre_tokenizer"]["pretokenizers"]]
        if kinds != ["Digits", "ByteLevel"]:
            return None
        vocab = found["model"]["vocab"]
        special = {token["content"]: token["id"] for token in found["added_tokens"]}
        vocab = vocab | special
    except (LookupError, TypeError):
        return None
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("its ids are not 0, 1, 2, ... without a gap")
    return smollm_encoding(name, sorted(vocab, key=vocab.get), special)


def write_tokenizer_json(encoding, folder):
    """Write tokenizer.json of a SmolLMEncoding into `folder`."""
    text = json.dumps(to_tokenizer_json(encoding), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
