"""From text to batches: byte-pair encoding, the tokenizers, the sliding-window dataset and its loader."""

import contextlib
import heapq
import json
import os
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

from shared import data

# GPT-2's rule for cutting text into pieces before any merge (Radford et al. 2019; openai/gpt-2, src/encoder.py):
# English contractions, a run of letters, of digits, of other signs (each with at most one leading space), white space.
GPT2_SPLIT = r"""'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"
SPECIAL = r"<.+>|\[.+\]"  # special tokens are written like this; what else no merge makes is damage


def byte_to_char():
    """GPT-2's table that gives each of the 256 bytes one printable character, so that its files are plain text.

    Printable bytes stand for themselves; the other 68 get the characters from U+0100 on, in order.
    The order of the table is also the order of the first 256 token ids.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def merge_pair(ids, pair, new_id):
    """Replace each occurrence of `pair` in the list `ids`, from the left, by `new_id`."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def learn_merges(words, times, n_merges, first_id=256):
    """The pairs to merge, in the order in which they are learned (Sennrich et al. 2016, algorithm 1).

    `words` are the distinct pieces of the text as lists of ids, `times` how often each occurs. The most frequent pair
    is merged first; among equals, the one with the smaller ids. Stops early when no pair is left. Only the words that
    hold the merged pair are touched, and only their pair counts corrected; a heap finds the next pair.
    """
    words = list(words)
    counts, where = Counter(), defaultdict(set)  # pair -> how often; pair -> in which words
    for w, ids in enumerate(words):
        for pair in pairwise(ids):
            counts[pair] += times[w]
            where[pair].add(w)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges = []
    while heap and len(merges) < n_merges:
        count, pair = heapq.heappop(heap)
        if counts[pair] != -count or count == 0:  # the count has changed since this entry was pushed
            continue
        changed = set()
        for w in where.pop(pair):
            old, new = words[w], merge_pair(words[w], pair, first_id + len(merges))
            for p in pairwise(old):
                counts[p] -= times[w]
            for p in pairwise(new):
                counts[p] += times[w]
                where[p].add(w)
            changed.update(pairwise(old), pairwise(new))
            words[w] = new
        merges.append(pair)
        for p in changed:
            heapq.heappush(heap, (-counts[p], p))
    return merges


def apply_merges(ids, merges):
    """Merge neighbours in `ids` until no pair of them is in `merges`: those learned first first, and from the left.

    `left` and `right` say where each token's neighbours stand; a heap finds the next merge. So a long word is no
    slower, letter by letter, than a short one.
    """
    n, ids = len(ids), [*ids, None]  # None stands for the end, and for a token that was merged into its left neighbour
    left, right = [*range(-1, n)], [*range(1, n + 1), n]
    heap = [(merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        new_id, i = heapq.heappop(heap)
        j = right[i]
        if merges.get((ids[i], ids[j])) != new_id:  # the pair has changed since this entry was pushed
            continue
        ids[i], ids[j] = new_id, None
        left[right[j]], right[i] = i, right[j]
        for k in (left[i], i):
            pair = ids[k], ids[right[k]]
            if pair in merges:
                heapq.heappush(heap, (merges[pair], k))
    return [token for token in ids if token is not None]


def split_special(text, special_tokens):
    """Cut `text` at its `special_tokens`, which become parts of their own."""
    names = "|".join(regex.escape(token) for token in sorted(special_tokens, key=len, reverse=True))
    return regex.split(f"({names})", text) if names else [text]


class BPETokenizer:
    """Byte-level byte-pair encoding as in GPT-2 (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    `BPETokenizer().train(text, vocab_size)` learns merges; `.load(folder)` reads `vocab.bpe` and `encoder.json`, the
    files that GPT-2 was published with, and is then equal to `tiktoken.get_encoding("gpt2")`, token by token, for all
    text but letters and digits so new that only one of `regex` and tiktoken knows them for such.
    """

    def __init__(self, merges=(), special_tokens=()):
        self.tokens = [bytes([b]) for b in byte_to_char()]  # id -> bytes
        self.byte_ids = {token[0]: i for i, token in enumerate(self.tokens)}
        self.merges = {}  # (left id, right id) -> merged id; a smaller id was learned earlier
        for left, right in merges:
            self.merges[left, right] = len(self.tokens)
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self.special_tokens = {token: len(self.tokens) + i for i, token in enumerate(special_tokens)}
        self.cache = {}  # piece of text -> its ids

    @property
    def n_vocab(self):
        return len(self.tokens) + len(self.special_tokens)

    @property
    def eot_token(self):
        return self.special_tokens[END_OF_TEXT]

    def train(self, text, vocab_size, special_tokens=(END_OF_TEXT,)):
        """Learn merges from `text`, in place, until bytes, merges and special tokens make `vocab_size` entries.

        Nothing is learned from the names of the special tokens. Raises ValueError for an empty text or a `vocab_size`
        too small for the bytes and the special tokens.
        """
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens need {256 + len(special_tokens)}")
        if not text:
            raise ValueError("the training text is empty")
        parts = [part for part in split_special(valid_unicode(text), special_tokens) if part not in special_tokens]
        pieces = Counter(piece for part in parts for piece in regex.findall(GPT2_SPLIT, part))
        words = [[self.byte_ids[b] for b in piece.encode("utf-8")] for piece in pieces]
        self.__init__(learn_merges(words, list(pieces.values()), n_merges), special_tokens)
        return self

    def encode(self, text, allowed_special=()):
        """Token ids of `text`. The special tokens named in `allowed_special` (or "all") become their own ids.

        Raises ValueError for any other special token in the text, as tiktoken does: text from outside must not be
        able to end a document. Use `encode_ordinary` where their names are meant as plain characters.
        """
        allowed = set(self.special_tokens if allowed_special == "all" else allowed_special)
        for token in self.special_tokens:
            if token in text and token not in allowed:
                raise ValueError(f"the text contains the special token {token!r}: allow it, or use encode_ordinary")
        ids = []
        for part in split_special(text, allowed):
            ids += [self.special_tokens[part]] if part in allowed else self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text):
        """Token ids of `text`, in which the names of special tokens are ordinary characters."""
        ids = []
        for piece in regex.findall(GPT2_SPLIT, valid_unicode(text)):
            if piece not in self.cache:
                self.cache[piece] = apply_merges([self.byte_ids[b] for b in piece.encode("utf-8")], self.merges)
            ids += self.cache[piece]
        return ids

    def decode(self, ids):
        """The text of `ids`; bytes that are no valid UTF-8 (a character cut in two) become U+FFFD.

        Raises ValueError for an id outside the vocabulary.
        """
        vocabulary = self.tokens + [token.encode("utf-8") for token in self.special_tokens]
        for i in ids:
            if not 0 <= i < len(vocabulary):
                raise ValueError(f"token id {i} is outside the vocabulary of {len(vocabulary)}")
        return b"".join(vocabulary[i] for i in ids).decode("utf-8", errors="replace")

    def save(self, folder):
        """Write `vocab.bpe` and `encoder.json` into `folder`, in GPT-2's format.

        Raises ValueError for a special token that could not be told from others in there: see `parse_bpe`.
        """
        write_bpe_files(self, Path(folder))

    def load(self, folder):
        """Read `vocab.bpe` and `encoder.json` from `folder`, in place.

        Raises FileNotFoundError when one is missing, ValueError when they are damaged or do not belong together.
        """
        self.__init__(*read_bpe_files(Path(folder) / "vocab.bpe", Path(folder) / "encoder.json"))
        return self

    def to_tiktoken(self, name):
        """The same encoding as a `tiktoken.Encoding`: compiled code with the same ids, for real work."""
        ranks = {token: i for i, token in enumerate(self.tokens)}
        rule = GPT2_SPLIT.replace(r"\s+(?!", r"\s{1,65536}(?!")  # tiktoken panics at a million spaces in a row
        return tiktoken.Encoding(name, pat_str=rule, mergeable_ranks=ranks, special_tokens=self.special_tokens)


def write_bpe_files(tokenizer, folder):
    """Write GPT-2's two files: `vocab.bpe` (one merge a line) and `encoder.json` (token -> id)."""
    char = byte_to_char()
    names = ["".join(char[b] for b in token) for token in tokenizer.tokens]
    for token in tokenizer.special_tokens:
        if token in names or not regex.fullmatch(SPECIAL, token):
            raise ValueError(f"the special token {token!r} must be written as <...> or [...], and be no other token")
    lines = ["#version: 0.2", *(f"{names[left]} {names[right]}" for left, right in tokenizer.merges)]
    ids = {name: i for i, name in enumerate(names)} | tokenizer.special_tokens
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    (folder / "encoder.json").write_text(json.dumps(ids), encoding="utf-8")


def read_bpe_files(merges_file, ids_file):
    """Read GPT-2's two files: (merges as pairs of ids, special tokens in the order of their ids).

    Raises FileNotFoundError when one is missing, ValueError when they are damaged or do not belong together.
    """
    for file in (merges_file, ids_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: a byte-pair encoding needs its merges and its ids")
    return parse_bpe(read_utf8(merges_file).splitlines(), read_json(ids_file, int), merges_file, ids_file)


def parse_bpe(lines, expected, merges_file, ids_file):
    """(merges as pairs of ids, special tokens in the order of their ids) of the `lines` of merges, "left right".

    `expected` gives each token its id. What no merge makes is a special token, written as <...> or [...]. Raises
    ValueError, naming the file, where the two do not belong together.
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


def read_utf8(file):
    """The text of a file in UTF-8. Raises ValueError, naming the file, where it is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def read_json(file, values=object):
    """The object in a JSON file. Raises ValueError, naming the file, where it holds none, or other `values`."""
    text = read_utf8(file)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(found).__name__}, not an object {{...}}")
    for key, value in found.items():
        if not isinstance(value, values):
            raise ValueError(f"{file} is damaged: {key!r} is {value!r:.50}, not of type {values.__name__}")
    return found


def valid_unicode(text):
    """`text` with half surrogate pairs (left by broken decoders) replaced by U+FFFD, so that UTF-8 can hold it."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


def with_end_of_text(tokenizer, folder):
    """The `tokenizer` that was read from `folder`. Raises ValueError if there is none, or none with <|endoftext|>."""
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer: it needs vocab.json and merges.txt, or tokenizer.json")
    if END_OF_TEXT not in tokenizer.special_tokens_set:
        raise ValueError(f"{folder}: its tokenizer has no {END_OF_TEXT}, with which documents and answers end")
    return tokenizer


def load_tokenizer(name="gpt2"):
    """A `tiktoken.Encoding`: GPT-2's for "gpt2", else the one in the folder `name` (`vocab.bpe`, `encoder.json`).

    Where GPT-2's two files cannot be had, a small bundled encoding takes their place, and a line says so.
    """
    if name != "gpt2":
        return BPETokenizer().load(name).to_tiktoken(Path(name).name)
    files = [data.fetch("gpt2_vocab"), data.fetch("gpt2_encoder")]
    if any(data.places.is_sample(file) for file in files):  # one real file and one sample do not go together
        return BPETokenizer().load(data.places.SAMPLES / "bpe").to_tiktoken("bundled-bpe")
    return BPETokenizer(*read_bpe_files(*files)).to_tiktoken("gpt2")


class TokenDataset(Dataset):
    """Windows of `context_length` tokens and the same windows one token later: what to read and what to predict.

    Window i starts at token i * stride; item i is (inputs, targets), each [T] int64. The last tokens that do not fill
    a window are left out. Raises ValueError when the text has too few tokens for one window.
    """

    def __init__(self, token_ids, context_length, stride=None):
        self.ids = torch.as_tensor(token_ids, dtype=torch.long)
        self.context_length = context_length
        self.stride = context_length if stride is None else stride
        if context_length < 1 or self.stride < 1:
            raise ValueError(f"context_length ({context_length}) and stride ({self.stride}) must be at least 1")
        if len(self.ids) <= context_length:
            raise ValueError(
                f"the text has {len(self.ids)} tokens; one window of context_length {context_length} and its targets "
                f"need {context_length + 1}"
            )

    def __len__(self):
        return (len(self.ids) - 1 - self.context_length) // self.stride + 1

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} does not exist: there are {len(self)}")
        start = i * self.stride
        end = start + self.context_length
        return self.ids[start:end], self.ids[start + 1 : end + 1]


def create_dataloader(token_ids, context_length, batch_size, stride=None, shuffle=True, drop_last=True, seed=0):
    """Batches of windows: (inputs, targets), each [B, T] int64.

    `seed` fixes the order of the windows. Raises ValueError when the text is too short for one full batch.
    """
    dataset = TokenDataset(token_ids, context_length, stride)
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"the text gives {len(dataset)} windows of {context_length} tokens, fewer than batch_size {batch_size}: "
            "take a smaller batch, a shorter context or drop_last=False"
        )
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator)


def as_list(texts):
    """`texts` as a list. Raises TypeError for a single text or entry, which would be read letter by letter."""
    if isinstance(texts, (str, bytes, dict)):
        raise TypeError(f"a list is needed here, not one {type(texts).__name__}: {str(texts)[:40]!r}")
    return list(texts)


def write_text(path, text):
    """Write a UTF-8 file under another name first, then rename it. Raises OSError, naming the file."""
    aside = Path(f"{path}.{os.getpid()}.partial")
    try:
        aside.write_text(valid_unicode(text), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
