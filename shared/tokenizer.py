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
    merged = []
    for token in ids:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new_id
        else:
            merged.append(token)
    return merged


def learn_merges(words, times, n_merges, first_id=256):
    """The pairs to merge, in the order in which they are learned (Sennrich et al. 2016, algorithm 1).

    `words` are the distinct pieces of the text as lists of ids, `times` how often each occurs. The most frequent pair
    is merged first; among equals, the one with the smaller ids. Stops early when no pair is left.
    """
    words, merges = list(words), []
    counts, where = Counter(), defaultdict(set)  # pair -> how often; pair -> in which words
    for w, ids in enumerate(words):
        for pair in pairwise(ids):
            counts[pair] += times[w]
            where[pair].add(w)
    heap = sorted((-n, pair) for pair, n in counts.items())  # sorted, it is a heap: the smallest entry is the first
    while heap and heap[0][0] < 0 and len(merges) < n_merges:
        n, pair = heap[0]
        if n != -counts[pair]:  # the pair has become rarer: no merge makes a pair of older tokens more frequent
            heapq.heapreplace(heap, (-counts[pair], pair))
            continue
        for w in where.pop(pair):
            for p in pairwise(words[w]):
                counts[p] -= times[w]
            words[w] = merge_pair(words[w], pair, first_id + len(merges))
            for p in pairwise(words[w]):
                counts[p] += times[w]
                if p not in where:  # it holds the new token, so it is at most as frequent as the merged pair was
                    heapq.heappush(heap, (n, p))
                where[p].add(w)
        merges.append(pair)
    return merges


def apply_merges(ids, merges):
    """Merge neighbours in `ids` until no pair of them is in `merges`: those learned first first, and from the left.

    A heap finds the next merge, so that a long word is no slower, letter by letter, than a short one.
    """
    n, ids = len(ids), [*ids, None]  # None stands for the end, and for a token that was merged into its left neighbour
    left, right = [*range(-1, n)], [*range(1, n + 1), n]  # where the neighbours of each token stand now
    heap = sorted((merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges)
    while heap:
        new_id, i = heapq.heappop(heap)
        j = right[i]
        if merges.get((ids[i], ids[j])) != new_id:  # the pair has changed since it went into the heap
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

    With GPT-2's merges it equals tiktoken, but for letters and digits so new that only one of the two knows them.
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
        self.n_vocab = len(self.tokens) + len(self.special_tokens)
        self.cache = {}  # piece of text -> its ids

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
        """The text of `ids`; half a character becomes U+FFFD. Raises ValueError for an id outside the vocabulary."""
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

    tiktoken keeps the tokens in the order of learning; their parts are what the merges before make of their bytes.
    """
    ranks, special, byte_ids, merges = encoding._mergeable_ranks, encoding._special_tokens, BPETokenizer().byte_ids, {}
    for token in sorted(ranks, key=ranks.get)[256:]:
        parts = apply_merges([byte_ids[b] for b in token], merges)
        if len(parts) != 2:
            break
        merges[tuple(parts)] = 256 + len(merges)
    bpe = BPETokenizer(merges, sorted(special, key=special.get))
    probe = "It's 12345 o'clock, DON'T   you\tsee?\n\n 漢字 naïve_x=1;"
    same_rule = regex.findall(encoding._pat_str, probe) == regex.findall(GPT2_SPLIT, probe)
    if not same_rule or (dict(zip(bpe.tokens, range(len(bpe.tokens)))), bpe.special_tokens) != (ranks, special):
        raise ValueError(f"the encoding {encoding.name} is not of GPT-2's kind: it does not fit GPT-2's two files")
    return bpe


def with_end_of_text(tokenizer, folder):
    """The `tokenizer` that was read from `folder`. Raises ValueError if there is none, or none with <|endoftext|>."""
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer: it needs vocab.json and merges.txt, or tokenizer.json")
    if END_OF_TEXT not in tokenizer.special_tokens_set:
        raise ValueError(f"{folder}: its tokenizer has no {END_OF_TEXT}, with which documents and answers end")
    return tokenizer
