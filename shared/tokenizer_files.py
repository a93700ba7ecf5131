"""The files of a byte-pair encoding: `vocab.json` and `merges.txt`, or `tokenizer.json`, as Hugging Face names them."""

import json

import regex

from shared.files import read_json, read_utf8

SPECIAL = r"<.+>|\[.+\]"  # special tokens are written like this; what else no merge makes is damage


def byte_to_char():
    """GPT-2's table of one printable character for each byte, in the order of the first 256 token ids.

    Printable bytes stand for themselves and come first; the other 68 get the characters from U+0100 on.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def write_bpe_files(tokenizer, folder):
    """Write `merges.txt` (one merge a line) and `vocab.json` (token -> id) of a BPETokenizer into `folder`.

    Raises ValueError for a special token that could not be told from others in there: see `parse_bpe`.
    """
    char = byte_to_char()
    names = ["".join(char[b] for b in token) for token in tokenizer.tokens]
    for token in tokenizer.special_tokens:
        if token in names or not regex.fullmatch(SPECIAL, token):
            raise ValueError(f"the special token {token!r} must be written as <...> or [...], and be no other token")
    lines = ["#version: 0.2", *(f"{names[left]} {names[right]}" for left, right in tokenizer.merges)]
    ids = {name: i for i, name in enumerate(names)} | tokenizer.special_tokens
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")


def read_bpe_files(merges_file, *ids_files):
    """What `parse_bpe` makes of a file of merges and one or more with ids. Raises FileNotFoundError where one lacks."""
    for file in (merges_file, *ids_files):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: a tokenizer needs its merges and its ids")
    ids = {token: i for file in ids_files for token, i in read_json(file, int).items()}
    return parse_bpe(read_utf8(merges_file).splitlines(), ids, merges_file, ids_files[-1])


def parse_bpe(lines, expected, merges_file, ids_file):
    """(merges as pairs of ids, special tokens in the order of their ids) of the `lines` of merges, "left right".

    `expected` gives each token its id; what no merge makes is a special token. Raises ValueError, naming the file,
    where the two do not belong together.
    """
    ids, merges = {char: i for i, char in enumerate(byte_to_char().values())}, []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version") or not line:
            continue
        left, _, right = line.partition(" ")
        if left not in ids or right not in ids:
            raise ValueError(f"{merges_file}, line {number}: {line!r} merges a token that no earlier line made")
        merges.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    special_tokens = sorted(expected.keys() - ids.keys(), key=expected.get)
    for token in special_tokens:
        if not regex.fullmatch(SPECIAL, token):
            raise ValueError(f"{ids_file}: {token!r} is not made by {merges_file}; a special token is <...> or [...]")
    if expected != ids | {token: len(ids) + i for i, token in enumerate(special_tokens)}:
        raise ValueError(f"{ids_file} does not hold the ids that the merges in {merges_file} lead to")
    return merges, special_tokens


def has_tokenizer(folder):
    """True if there are tokenizer files in `folder`."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def read_tokenizer_folder(folder):
    """What `parse_bpe` makes of the tokenizer in a Hugging Face folder, and the errors of `read_bpe_files`.

    tokenizer.json, which has everything in it, goes before merges.txt and vocab.json with added_tokens.json.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return read_bpe_files(folder / "merges.txt", folder / "vocab.json", *folder.glob("added_tokens.json"))
    found = read_json(file)
    try:
        tokens = found["model"]["vocab"] | {token["content"]: token["id"] for token in found["added_tokens"]}
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in found["model"]["merges"]]
        if found["pre_tokenizer"]["type"] != "ByteLevel":
            raise ValueError(f"it cuts text by {found['pre_tokenizer']['type']}, not by GPT-2's rule")
        return parse_bpe(lines, tokens, "its merges", "its vocab")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} holds no byte-pair encoding: {type(error).__name__} {error}") from None


def tokenizer_config(bpe, max_tokens, end_of_text, chat_template):
    """What tokenizer_config.json says: the special tokens, the longest input, and how to write a chat, if given."""
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False) | {"special": True}
    settings = {
        "tokenizer_class": "GPT2Tokenizer", "model_max_length": max_tokens, "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token} | flags for token, i in bpe.special_tokens.items()},
    }  # fmt: skip
    if end_of_text in bpe.special_tokens:
        settings |= {f"{kind}_token": end_of_text for kind in ("bos", "eos", "unk", "pad")}
    return settings if chat_template is None else settings | {"chat_template": chat_template}
