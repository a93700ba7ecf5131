"""Files of text and of records, plain or packed: .txt, .json, .jsonl (also .gz and .zst), .parquet.

Each function that reads raises ValueError for a file that is not whole or not of its format, OSError for one that
cannot be opened. None writes to disk.
"""

import codecs
import contextlib
import gzip
import io
import json
import os
import zlib
from pathlib import Path

_NO_TEXT = {  # how a file begins, and what it is then
    codecs.BOM_UTF16_LE: "UTF-16; save it as UTF-8", codecs.BOM_UTF16_BE: "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "packed by gzip, once more or without .gz at the end of its name",
    b"\x28\xb5\x2f\xfd": "packed by Zstandard, once more or without .zst at the end of its name",
}  # fmt: skip


def unpacked(path):
    """The bytes of the text file `path` in blocks, unpacked where its name ends in .gz or .zst.

    Raises ValueError where what is packed is damaged, was cut off or is no text in UTF-8 by its first bytes.
    """
    head = b""
    for block in _unpack(path):
        if len(head) < 4:
            head += block[:4]
            for beginning, kind in _NO_TEXT.items():
                if head.startswith(beginning):
                    raise ValueError(f"it is {kind}")
        yield block


def _unpack(path):
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
    if b"\0" in file.peek(2)[:2]:
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
            record = _parse_line(line, number) if line.strip() else None
            if isinstance(record, dict):
                records.append(record)
            elif line.strip():
                raise ValueError(f"line {number} holds no object, but {line.strip()[:40]}")
    return records


def _parse_line(line, number):
    try:
        return parse_json(line)
    except ValueError as error:
        where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"line {number}{where}: {getattr(error, 'msg', error)}") from None


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
        return _as_list(parse_json(file.read()))


def _as_list(entries):
    if not isinstance(entries, list):
        raise ValueError(f"it holds one {type(entries).__name__}, not a list of entries")
    return entries


def read_entries(path):
    """The entries of a JSON file that is one list, or of a file of JSON lines, whatever its name.

    An object that ends in its line is the first of JSON lines. Those are read one by one: nothing is held beside the
    entries, which are not looked at. Raises ValueError, naming file, line and column.
    """
    with _named(path), open_text(path) as file:
        blank = 0
        while (first := file.readline()) and not first.strip():
            blank += 1
        if not first:
            raise ValueError("the file is empty")
        if first.lstrip().startswith("{"):
            try:
                entries = [parse_json(first)]
            except ValueError:
                pass  # an object that goes on over more lines: no JSON lines
            else:
                return entries + [_parse_line(line, n) for n, line in enumerate(file, blank + 2) if line.strip()]
        return _as_list(parse_json("\n" * blank + first + file.read()))
