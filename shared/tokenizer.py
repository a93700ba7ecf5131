"""Byte-pair encoding: training, encoding, decoding, and the same encoding in tiktoken's compiled code, both ways."""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

from shared import data
from shared.files import write_together
from shared.tokenizer_files import byte_to_char, read_bpe_files, read_tokenizer_folder, write_bpe_files

# GPT-2's rule for cutting text into pieces before any merge (Radford et al. 2019; openai/gpt-2, src/encoder.py):
# English contractions, a run of letters, of digits, of other signs (each with at most one leading space), white space.
GPT2_SPLIT = r"""'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
END_OF_TEXT = "<|endoftext|>"


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


def valid_unicode(text):
    """`text` with half surrogate pairs (left by broken decoders) replaced by U+FFFD, so that UTF-8 can hold it."""
    return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


class BPETokenizer:
    """Byte-level byte-pair encoding as in GPT-2 (Sennrich et al. 2016; Radford et al. 2019, section 2.2).

    `BPETokenizer().train(text, vocab_size)` learns merges. With the merges that GPT-2 was published with, it is equal
    to `tiktoken.get_encoding("gpt2")`, token by token, for all text but letters and digits so new that only one of
    `regex` and tiktoken knows them for such.
    """

    def __init__(self, merges=(), special_tokens=()):
        if isinstance(special_tokens, str) or not all(special_tokens) or len({*special_tokens}) < len(special_tokens):
            raise ValueError(f"special_tokens is {special_tokens!r}; it must be a list of different names, none empty")
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
        least = BPETokenizer(special_tokens=special_tokens).n_vocab
        if type(vocab_size) is not int or vocab_size < least:
            raise ValueError(f"vocab_size is {vocab_size!r}; bytes and special tokens need an int of at least {least}")
        if not text:
            raise ValueError("the training text is empty")
        parts = [part for part in split_special(valid_unicode(text), special_tokens) if part not in special_tokens]
        pieces = Counter(piece for part in parts for piece in regex.findall(GPT2_SPLIT, part))
        words = [[self.byte_ids[b] for b in piece.encode("utf-8")] for piece in pieces]
        self.__init__(learn_merges(words, list(pieces.values()), vocab_size - least), special_tokens)
        return self

    def encode(self, text, allowed_special=()):
        """Token ids of `text`. The special tokens named in `allowed_special` (or "all") become their own ids.

        Raises ValueError for any other special token in the text, as tiktoken does: text from outside must not be
        able to end a document. Use `encode_ordinary` where their names are meant as plain characters.
        """
        allowed = self.special_tokens.keys() if allowed_special == "all" else allowed_special
        if isinstance(allowed, str) or not {*allowed} <= self.special_tokens.keys():
            raise ValueError(f"allowed_special is {allowed!r}; it must be 'all' or some of {[*self.special_tokens]}")
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
        """Write `vocab.json` and `merges.txt` into `folder`, as transformers reads them. Errors: see `parse_bpe`."""
        with write_together(folder) as aside:
            write_bpe_files(self, aside)

    def load(self, folder):
        """Read the tokenizer files in `folder`, in place; what they may be, and the errors: `read_tokenizer_folder`."""
        self.__init__(*read_tokenizer_folder(Path(folder)))
        return self

    def to_tiktoken(self, name):
        """The same encoding as a `tiktoken.Encoding`: compiled code with the same ids, for real work."""
        ranks = {token: i for i, token in enumerate(self.tokens)}
        rule = GPT2_SPLIT.replace(r"\s+(?!", r"\s{1,65536}(?!")  # tiktoken panics at a million spaces in a row
        return tiktoken.Encoding(name, pat_str=rule, mergeable_ranks=ranks, special_tokens=self.special_tokens)


def load_tokenizer(name="gpt2"):
    """A `tiktoken.Encoding`: GPT-2's for "gpt2", else the one whose files are in the folder `name`.

    Where GPT-2's two files cannot be had, a small bundled encoding takes their place, and a line says so.
    """
    if name != "gpt2":
        return BPETokenizer().load(name).to_tiktoken(Path(name).resolve().name)
    files = [data.fetch("gpt2_vocab"), data.fetch("gpt2_encoder")]
    if any(data.places.is_sample(file) for file in files):  # one real file and one sample do not go together
        return BPETokenizer().load(data.places.SAMPLES / "bpe").to_tiktoken("bundled-bpe")
    return BPETokenizer(*read_bpe_files(*files)).to_tiktoken("gpt2")


def from_tiktoken(encoding):
    """The BPETokenizer with the merges and ids of a tiktoken.Encoding. Raises ValueError if it is not GPT-2's kind.

    tiktoken keeps the tokens in the order in which they were learned, not their two parts: those are what the merges
    learned before make of the token's bytes.
    """
    bpe = BPETokenizer()
    tokens = sorted(encoding._mergeable_ranks, key=encoding._mergeable_ranks.get)
    kept = tokens[:256] == bpe.tokens
    for token in tokens[256:] if kept else []:
        parts = apply_merges([bpe.byte_ids[b] for b in token], bpe.merges)
        if len(parts) != 2:
            kept = False
            break
        bpe.merges[tuple(parts)] = len(bpe.tokens)
        bpe.tokens.append(token)
    bpe.special_tokens = dict(sorted(encoding._special_tokens.items(), key=lambda item: item[1]))
    probe = "It's 12345 o'clock, DON'T   you\tsee?\n\n 漢字 naïve_x=1;"
    same_rule = regex.findall(encoding._pat_str, probe) == regex.findall(GPT2_SPLIT, probe)
    contiguous = list(bpe.special_tokens.values()) == list(range(len(tokens), bpe.n_vocab))
    if not kept or not contiguous or not same_rule:
        raise ValueError(f"the encoding {encoding.name} is not of GPT-2's kind: it does not fit GPT-2's two files")
    return bpe


def with_end_of_text(tokenizer, folder):
    """The `tokenizer` that was read from `folder`. Raises ValueError if there is none, or none with <|endoftext|>."""
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer: it needs vocab.json and merges.txt, or tokenizer.json")
    if END_OF_TEXT not in tokenizer.special_tokens_set:
        raise ValueError(f"{folder}: its tokenizer has no {END_OF_TEXT}, with which documents and answers end")
    return tokenizer
