"""What the course's data files hold: one function for each format, from a path to text, records or test items.

`shared/data.py` knows which file is in which format; lessons call `data.read(path)`. Each function raises an error
(ValueError, OSError or the library's own) for a file that is not whole or not of its format. None writes to disk.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import tarfile
import zipfile
import zlib
from pathlib import Path

MEMBER_LIMIT = 10_000_000  # bytes; no file inside an archive that is read here comes near it


def unpacked(path):
    """The bytes of the file `path` in blocks, unpacked where its name ends in .gz or .zst.

    Raises ValueError where what is packed is damaged or was cut off.
    """
    kind = Path(path).suffix
    with open(path, "rb") as file:
        if kind in (".gz", ".zst") and not os.fstat(file.fileno()).st_size:
            raise ValueError("the file is empty")
        if kind == ".zst":
            yield from _unpack_zst(file)
            return
        unpacked = gzip.GzipFile(fileobj=file) if kind == ".gz" else file
        try:
            while block := unpacked.read1(2**16):
                yield block
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"not valid gzip data, or cut off: {error}") from None


def _unpack_zst(file):
    """Frame by frame: the library's stream reader takes a file that was cut off for one that ends there.

    In small bites, because one of them may unpack to a thousand times its size.
    """
    import zstandard  # not needed for the first two chapters

    unpacker = zstandard.ZstdDecompressor(max_window_size=2**27)
    frame = None
    while packed := file.read(2**11):
        while packed:
            frame = frame or unpacker.decompressobj()
            try:
                yield frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise ValueError(f"not valid Zstandard data: {error}") from None
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise ValueError("the file ends in the middle of its Zstandard data")


class _Blocks(io.RawIOBase):
    """A generator of bytes, to be read like a file."""

    def __init__(self, blocks):
        self.blocks, self.block = blocks, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.block:
            self.block = next(self.blocks, None)
            if self.block is None:
                return 0
        n = min(len(buffer), len(self.block))
        buffer[:n], self.block = self.block[:n], self.block[n:]
        return n

    def close(self):
        self.blocks.close()
        super().close()


def open_text(path):
    """The file `path` opened to be read as UTF-8 text, with or without a byte order mark; unpacked as by `unpacked`.

    Reading raises ValueError where it is damaged, cut off or no UTF-8; the message does not name the file.
    """
    file = io.BufferedReader(_Blocks(unpacked(path)), 2**16)
    head = file.peek(2)[:2]
    if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head:
        file.close()
        raise ValueError("it is UTF-16, or no text at all; save it as UTF-8")
    return io.TextIOWrapper(file, encoding="utf-8-sig")


def parse_json(text):
    """What a JSON text says, in valid Unicode: half of a surrogate pair in it becomes U+FFFD. Raises ValueError."""
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return _valid(json.loads(text)) if "\\u" in text else json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


def _valid(value):
    if isinstance(value, str):
        return value.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    if isinstance(value, list):
        return [_valid(entry) for entry in value]
    return {_valid(key): _valid(entry) for key, entry in value.items()} if isinstance(value, dict) else value


@contextlib.contextmanager
def _named(path):
    """Errors in what the file holds name the file, and where they know it the line."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_text(path):
    """All of a text file, plain or packed. Raises ValueError, naming the file, where it is damaged or not UTF-8."""
    with _named(path), open_text(path) as file:
        return file.read()


def read_records(path):
    """The records of a .jsonl file, plain or packed, or of a .parquet file: a list of dicts.

    Raises ValueError, naming file and line, for what is no such file.
    """
    with _named(path):
        return _parquet_records(path) if Path(path).suffix == ".parquet" else _json_records(path)


def _json_records(path):
    records = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                record = parse_json(line) if line.strip() else None
            except ValueError as error:
                where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise ValueError(f"line {number}{where}: {getattr(error, 'msg', error)}") from None
            if isinstance(record, dict):
                records.append(record)
            elif line.strip():
                raise ValueError(f"line {number} holds no object, but {line.strip()[:40]}")
    return records


def _parquet_records(path):
    import pyarrow.parquet

    with open(path, "rb") as file:
        try:
            return pyarrow.parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"not valid Parquet data, or cut off: {error}") from None


def read_json_list(path):
    """The entries of a JSON file that is one list. The entries themselves are not looked at."""
    with _named(path), open_text(path) as file:
        entries = parse_json(file.read())
        if not isinstance(entries, list):
            raise ValueError(f"it holds one {type(entries).__name__}, not a list of entries")
        return entries


def _texts(path, *columns):
    """The records of a file whose `columns` must all be text."""
    records = read_records(path)
    for number, record in enumerate(records, start=1):
        for column in columns:
            if not isinstance(record.get(column), str):
                raise ValueError(f"{path}: record {number}: {column} is {record.get(column)!r:.40}, not text")
    return records


def wikitext(path):
    """WikiText's records, one for each line of the articles -> the whole text."""
    return "".join(record["text"] for record in _texts(path, "text"))


def lambada(path):
    """LAMBADA -> its passages; the last word of each is what a model must predict."""
    return [record["text"] for record in _texts(path, "text")]


def lambada_parts(path):
    """The same from records that keep the context and the word to predict apart."""
    return [record["context"] + record["continuation"] for record in _texts(path, "context", "continuation")]


def hellaswag(path):
    """HellaSwag -> dicts with `query`, `choices` and `gold`, the number of the right one.

    The query is what EleutherAI's lm-evaluation-harness makes of a record: the activity, then the context, without the
    marks in square brackets that the WikiHow articles have.
    """
    return [{"query": _without_marks(f"{r['activity_label']}: {r['ctx_a']} {r['ctx_b'].capitalize()}"),
             "choices": [_without_marks(ending) for ending in r["endings"]], "gold": int(r["label"])}
            for r in read_records(path)]  # fmt: skip


def _without_marks(text):
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def arc(path):
    """ARC -> dicts with `query`, `choices` (three to five) and `gold`, the number of the right one, as HellaSwag's.

    The query is that of the lm-evaluation-harness: "Question: ...", and on the next line "Answer:".
    """
    return [{"query": f"Question: {r['question']}\nAnswer:", "choices": list(r["choices"]["text"]),
             "gold": r["choices"]["label"].index(r["answerKey"])} for r in read_records(path)]  # fmt: skip


def sms_text(path):
    """The SMS Spam Collection -> its text, `label<TAB>message` lines; from the archive or from the plain file.

    Lines end in a line feed. Bytes that are not UTF-8 are an error that names their line: guessing another encoding
    would change messages without a word.
    """
    content = _zip_member(path, "SMSSpamCollection") if Path(path).suffix == ".zip" else Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x})") from error


def _zip_member(path, name):
    """The bytes of the one member of a zip that is called exactly `name`."""
    with zipfile.ZipFile(path) as archive:
        if name not in archive.namelist():
            raise ValueError(f"the archive holds no {name}, but {archive.namelist()[:5]}")
        with archive.open(name) as file:
            return _read_limited(file, name)


def _read_limited(file, name):
    """The bytes of an archive's member; ValueError where it unpacks to more than MEMBER_LIMIT."""
    content = file.read(MEMBER_LIMIT + 1)  # what the archive says about the size may be false
    if len(content) > MEMBER_LIMIT:
        raise ValueError(f"{name} unpacks to more than {MEMBER_LIMIT:,} bytes")
    return content


# The folder is data/ in the authors' archive; auxiliary_train/, beside these three, is not read.
_MMLU_MEMBER = re.compile(r"(?:\./)?\w+/(dev|val|test)/(\w+)_\1\.csv")


def mmlu(path):
    """MMLU -> {"dev": [...], "val": [...], "test": [...]}; each item a dict with `subject`, `question`, `choices`
    (four) and `gold`, the number of the right one.

    From the authors' archive of CSV files (.tar, .tar.gz), whose members are read in memory and by their exact names,
    so that no path in it can lead anywhere; or from a .jsonl file of the Hub's records with their `split`.
    """
    splits = {"dev": [], "val": [], "test": []}
    if Path(path).suffix == ".jsonl":
        for r in read_records(path):
            item = {"subject": r["subject"], "question": r["question"], "choices": r["choices"], "gold": r["answer"]}
            splits[r["split"]].append(item)
        return splits
    with tarfile.open(path, "r|*") as archive:  # "|": from front to back, once
        for member in archive:
            found = _MMLU_MEMBER.fullmatch(member.name)
            if found and member.isfile():
                split, subject = found.groups()
                splits[split] += _mmlu_items(subject, member.name, archive.extractfile(member))
    subjects = {item["subject"] for items in splits.values() for item in items}
    for split, items in splits.items():  # tarfile takes an archive that was cut off between two members for a whole one
        lacking = sorted(subjects - {item["subject"] for item in items})
        if lacking or not items:
            raise ValueError(f"no {split} questions of {', '.join(lacking[:5]) or 'any subject'}")
    return splits


def _mmlu_items(subject, name, file):
    """The items of one CSV file without a header: question, four choices, the letter of the right one."""
    text = _read_limited(file, name).decode("utf-8-sig")
    items = []
    for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise ValueError(f"{name}, row {number} is no question with four choices and a letter A to D")
        items.append({"subject": subject, "question": row[0], "choices": row[1:5], "gold": "ABCD".index(row[5])})
    return items
