"""What `prepare_corpus.py` does to one text: the cleaning steps, the filters, and the hashes that find duplicates.

Plain functions of a string, in the order in which they are applied. Each step and each rule is counted by its name.
"""

import hashlib
import html
import re
import unicodedata
from functools import cache

import numpy as np

# --- cleaning: each step takes a text and gives a text ---------------------------------------------------------------

WINDOWS_1252 = {bytes([b]).decode("cp1252", errors="ignore") or chr(b): b for b in range(0x80, 0x100)}
CONTINUATION = "".join(re.escape(c) for c, b in WINDOWS_1252.items() if b < 0xC0) + "\x80-\xbf"
# Two bytes of UTF-8 read as two characters: not where the second is a quotation mark or a dash, which may well follow
# a capital letter in good text.
MOJIBAKE = re.compile(f"[ÂÃ](?![“”‘’–—…•])[{CONTINUATION}]|â[{CONTINUATION}]{{2}}|ð[{CONTINUATION}]{{3}}")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

BLOCKS = (
    "p|br|hr|div|h[1-6]|ul|ol|li|dl|dt|dd|table|thead|tbody|tr|blockquote|pre|section|article|header|footer|nav|form"
)
INLINES = "a|b|i|u|s|em|strong|span|font|small|big|sub|sup|code|img|td|th|cite|label|input|button|iframe|html|body|head"
BLOCK_TAG = re.compile(rf"</?(?:{BLOCKS})(?:\s[^<>]{{0,500}})?/?>", re.IGNORECASE)
INLINE_TAG = re.compile(rf"</?(?:{INLINES})(?:\s[^<>]{{0,500}})?/?>", re.IGNORECASE)
UNSEEN = [  # from the one to the other, with all that is between
    (re.compile(r"<script\b", re.IGNORECASE), re.compile(r"</script\s*>", re.IGNORECASE)),
    (re.compile(r"<style\b", re.IGNORECASE), re.compile(r"</style\s*>", re.IGNORECASE)),
    (re.compile("<!--"), re.compile("-->")),
]
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
CONTROL_OR_INVISIBLE = re.compile(  # C1 codes, soft hyphen, zero-width space, direction marks, byte order mark
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
LONG_GAP = re.compile(r"([^\S\n])[^\S\n]{100,}")


def repair_encoding(text):
    """Undo UTF-8 that was once read as Windows-1252 (`cafÃ©` -> `café`); half surrogate pairs become U+FFFD."""
    if text.isascii():
        return text
    return valid_unicode(MOJIBAKE.sub(lambda match: _decode_again(match[0]), text))


def valid_unicode(text):
    """`text` as UTF-8 can hold it: U+FFFD for half a surrogate pair, and for a byte of a file name that is no UTF-8."""
    return LONE_SURROGATE.sub("\ufffd", text)


def _decode_again(characters):
    try:
        return bytes(WINDOWS_1252.get(c, ord(c) & 0xFF) for c in characters).decode("utf-8")
    except UnicodeDecodeError:
        return characters


def strip_html(text):
    """Leave out scripts, comments and tags, with a new line for those that end a block; `&amp;` becomes `&`."""
    if "<" in text:
        for opening, closing in UNSEEN:
            text = _cut(text, opening, closing)
        text = INLINE_TAG.sub("", BLOCK_TAG.sub("\n", text))
    return ENTITY.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def _cut(text, opening, closing):
    """`text` without what stands from each `opening` to the `closing` after it; in one pass, however many there are."""
    kept, at = [], 0
    for begin in opening.finditer(text):
        if begin.start() >= at:
            end = closing.search(text, begin.end())
            if end is None:
                break
            kept.append(text[at : begin.start()])
            at = end.end()
    return "".join([*kept, text[at:]]) if kept else text


def normalize_unicode(text):
    """Unicode's form NFC: one way to write each character, so that equal words are equal bytes."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def strip_control_characters(text):
    """Leave out what no reader sees; every line end becomes one line feed, every no-break space a space."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii():
        return CONTROL.sub("", text)
    return CONTROL_OR_INVISIBLE.sub("", text.replace("\xa0", " "))


def collapse_blank_lines(text):
    """No spaces at line ends, at most one empty line in a row, no gap of more than 100 spaces."""
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    if "\n\n\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", text)
    if " " * 100 in text or "\t" * 100 in text:
        text = LONG_GAP.sub(r"\1", text)
    return text.strip()


CLEANING = {step.__name__: step for step in (
    repair_encoding, strip_html, normalize_unicode, strip_control_characters, collapse_blank_lines,
)}  # fmt: skip


def clean(text, steps=CLEANING):
    """(`text` after all steps, the names of those that changed it)."""
    changed = []
    for name, step in steps.items():
        before, text = text, step(text)
        if text != before:
            changed.append(name)
    return text, changed


# --- filters: each answers "is this text to be dropped?" -------------------------------------------------------------

ASCII_LETTERS = bytes(c for c in range(128) if chr(c).isalpha())
ASCII_SPACES = b" \t\n\r"
ASCII_RUN = re.compile("[\x00-\x7f]+")


def too_short(text, characters=200):
    """Fewer than 200 characters: SlimPajama's own bound (Soboleva et al. 2023), there without punctuation."""
    return len(text) < characters


def broken_encoding(text, share=0.005):
    """More than one character in 200 is U+FFFD, the sign for one that was lost."""
    return text.count("\ufffd") > share * len(text)


def few_letters(text, share=0.6):
    """Less than 60 % of the characters, white space aside, are letters: tables of numbers, logs, drawings.

    The marks that are combined with letters are part of them: a third of Hindi and more of Burmese is such marks.
    """
    plain = text.encode("ascii", errors="ignore")
    others = len(plain.translate(None, ASCII_LETTERS + ASCII_SPACES))
    visible = len(plain.translate(None, ASCII_SPACES))
    if len(plain) < len(text):
        rest = ASCII_RUN.sub("", text)
        visible += len(rest)
        others += sum(not (character.isalpha() or is_mark(character)) for character in rest)
    return visible - others < share * visible


def is_mark(character):
    """A vowel sign, an accent; not those that only choose between the looks of an emoji (U+FE00 to U+FE0F)."""
    return unicodedata.category(character) in ("Mn", "Mc") and not "\ufe00" <= character <= "\ufe0f"


def repeated_lines(text, share=0.3):
    """More than 30 % of the characters stand in lines that came before: menus, spam (cf. Rae et al. 2021, table A1)."""
    seen, repeated, total = set(), 0, 0
    for line in text.split("\n"):
        total += len(line)
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated > share * total


FILTERS = {rule.__name__: rule for rule in (too_short, broken_encoding, few_letters, repeated_lines)}


def why_dropped(text, rules=FILTERS):
    """The name of the first rule that drops `text`, or None."""
    return next((name for name, rule in rules.items() if rule(text)), None)


# --- hashes: equal texts, and texts that are nearly equal -------------------------------------------------------------

SHINGLE = 5  # words
BANDS, ROWS = 16, 8  # 128 minima; two texts are compared when all 8 of one of the 16 bands are equal
LONGEST_COMPARED = 2**20  # bytes; of a longer text, its beginning
CELL_STARTS = np.arange(BANDS * ROWS, dtype=np.uint64) * np.uint64(2**64 // (BANDS * ROWS))
WEIGHTS = np.random.default_rng(0).integers(0, 2**63, (BANDS, ROWS + 1), np.uint64) * np.uint64(2) + np.uint64(1)
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
GENERAL_PUNCTUATION = re.compile(rb"\xe2\x80[\x90-\xbf]")  # dashes, curly quotes, dots, in UTF-8
NO_PUNCTUATION = bytes(c if c >= 128 or chr(c).isalnum() else 32 for c in range(256))


def document_hash(text):
    """64 bits of BLAKE2b as a signed integer: the name of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little", signed=True)


def in_validation(key, share):
    """True for about `share` of all document hashes. It depends on the document alone, so a text never moves."""
    return key % 2**32 < share * 2**32


def only_words(text):
    """The text as bytes, lower case, with spaces for punctuation: texts that differ in these alone count as equal."""
    characters = text[:LONGEST_COMPARED].lower().encode("utf-8")[:LONGEST_COMPARED]
    return GENERAL_PUNCTUATION.sub(b" ", characters).translate(NO_PUNCTUATION)


def mix(x):
    """Scramble 64-bit integers, one to one (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@cache
def powers():
    """(BASE^1, BASE^2, ..., the inverses of these), [LONGEST_COMPARED] uint64 each: modulo 2**64, as all sums here."""
    return [np.cumprod(np.full(LONGEST_COMPARED, base, np.uint64)) for base in (BASE, pow(BASE, -1, 2**64))]


def word_hashes(text):
    """One 64-bit hash for each word, [words] uint64: its bytes as the digits of a number, modulo 2**64.

    For all words at once (cf. Karp & Rabin 1987): each byte of the text times its power of the base, summed up from the
    beginning; a word's number is the difference between its end and its start, divided by the power at its start.
    """
    characters, (forward, inverse) = np.frombuffer(only_words(text), np.uint8), powers()
    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum(characters * forward[: len(characters)], out=sums[1:])
    in_word = np.zeros(len(characters) + 2, bool)
    in_word[1:-1] = characters != ord(" ")
    edges = np.flatnonzero(in_word[1:] != in_word[:-1])
    starts, ends = edges[::2], edges[1::2]
    return (sums[ends] - sums[starts]) * inverse[starts]


def shingle_hashes(text):
    """One 64-bit hash for each five words in a row, [words - 4] uint64; a shorter text is one shingle."""
    words = mix(word_hashes(text))
    length = min(SHINGLE, len(words))
    hashes = np.zeros(max(1, len(words) - length + 1), np.uint64)
    for i in range(length):
        hashes = hashes * np.uint64(BASE) + words[i : i + len(hashes)]
    return mix(hashes)


def minhash(text):
    """The 128 minima of a text, [128] uint64: the share of equal ones estimates how alike two texts are.

    It estimates the Jaccard index, shared shingles over all shingles (Broder 1997), by one hash function instead of
    128: the number line is cut into 128 cells, and each takes the smallest hash in it; an empty cell takes that of the
    next (Shrivastava & Li 2014, "Densifying one permutation hashing via rotation").
    """
    hashes = np.sort(shingle_hashes(text))
    return hashes[np.searchsorted(hashes, CELL_STARTS) % len(hashes)]


def band_keys(minima):
    """One signed 64-bit key for each of the 16 bands, [16] int64: near duplicates very probably have one in common."""
    rows = minima.reshape(BANDS, ROWS) * WEIGHTS[:, :ROWS]
    return mix(rows.sum(axis=1) + WEIGHTS[:, ROWS]).view(np.int64)


def short_signature(minima):
    """The last 16 bits of each minimum, [128] uint16: what is kept of a document, to compare others with it."""
    return minima.astype(np.uint16)


def similarity(one, other):
    """The estimated Jaccard similarity of two texts by their signatures, 0 to 1."""
    return np.count_nonzero(one == other) / len(one)
