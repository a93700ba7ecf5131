"""From text to batches: byte-pair encoding, the tokenizers, the sliding-window dataset and its loader."""

import heapq
import json
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


class BPETokenizer:
    """Byte-level byte-pair encoding as in GPT-2 (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    `BPETokenizer().train(text, vocab_size)` learns merges; `.load(folder)` reads `vocab.bpe` and `encoder.json`, the
    files that GPT-2 was published with, and is then equal to `tiktoken.get_encoding("gpt2")`, token by token.
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

        Raises ValueError for an empty text or a `vocab_size` too small for the bytes and the special tokens.
        """
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens need {256 + len(special_tokens)}")
        if not text:
            raise ValueError("the training text is empty")
        pieces = Counter(regex.findall(GPT2_SPLIT, valid_unicode(text)))
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
        if not allowed:
            return self.encode_ordinary(text)
        names = "|".join(regex.escape(token) for token in sorted(allowed, key=len, reverse=True))
        ids = []
        for part in regex.split(f"({names})", text):
            ids += [self.special_tokens[part]] if part in allowed else self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text):
        """Token ids of `text`, in which the names of special tokens are ordinary characters."""
        ids = []
        for piece in regex.findall(GPT2_SPLIT, valid_unicode(text)):
            if piece not in self.cache:
                self.cache[piece] = self.encode_piece([self.byte_ids[b] for b in piece.encode("utf-8")])
            ids += self.cache[piece]
        return ids

    def encode_piece(self, ids):
        """Apply the merges to the bytes of one piece, those learned first first."""
        while len(ids) > 1:
            pair = min(pairwise(ids), key=lambda p: self.merges.get(p, self.n_vocab))
            if pair not in self.merges:
                break
            ids = merge_pair(ids, pair, self.merges[pair])
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
        """Write `vocab.bpe` and `encoder.json` into `folder`, in GPT-2's format."""
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
        return tiktoken.Encoding(name, pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=self.special_tokens)


def write_bpe_files(tokenizer, folder):
    """Write GPT-2's two files: `vocab.bpe` (one merge a line) and `encoder.json` (token -> id)."""
    char = byte_to_char()
    names = ["".join(char[b] for b in token) for token in tokenizer.tokens]
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
    try:
        expected = json.loads(ids_file.read_text(encoding="utf-8"))
        lines = merges_file.read_text(encoding="utf-8").splitlines()
    except ValueError as error:
        raise ValueError(f"{merges_file.name} or {ids_file.name} is damaged: {error}") from None
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
    whole = all(regex.fullmatch(r"<.+>|\[.+\]", token) for token in special_tokens)  # else a merge is missing
    if not whole or expected != ids | {token: len(ids) + i for i, token in enumerate(special_tokens)}:
        raise ValueError(f"{ids_file} does not hold the ids that the merges in {merges_file.name} lead to")
    return merges, special_tokens


def valid_unicode(text):
    """`text` with half surrogate pairs (left by broken decoders) replaced by U+FFFD, so that UTF-8 can hold it."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


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
