"""Where `prepare_corpus.py` gets its records: which files a source has, how they are fetched, how each format is read.

What cannot be read does not stop a run: it comes out of the stream as `Bad`, with the reason, and is counted.
"""

import hashlib
import json
import os
import re
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from corpus_rules import valid_unicode

from shared import data
from shared.data.formats import unpacked
from shared.data.network import Failed, ask_json
from shared.data.places import ROOT, data_dir, is_offline
from shared.data.registry import SLIMPAJAMA, Dataset

FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
LONGEST_RECORD = 2**25  # bytes of one line
TEXT_PIECE = 2**20  # bytes; a longer text file is cut at line ends into documents of about this size
UNREADABLE = "unreadable file, or the rest of one"  # the last record of such a file
END_OF_DOCUMENT = b"<|endoftext|>"  # on a line of its own in a text file
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8
EDGE = 2**16  # bytes at each end of a local file, by which it is known again


class CorpusError(Exception):
    """The run cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class InputFile:
    """One file: a local `path`; or, with `urls`, one to be fetched into the cache under `path`. `name` is for show."""

    name: str
    path: str
    urls: tuple = ()
    size: int | None = None
    sha256: str | None = None
    edges: str | None = None  # of a local file: the sha256 of its beginning and its end

    @property
    def group(self):
        """The name under which its documents are counted, unless they bring one: `books` for books_012.jsonl.zst."""
        stem = Path(self.name).name.split(".")[0]
        return re.sub(r"[-_]\d+(-of-\d+)?(-[0-9a-f]{8,})?$", "", stem) or stem


@dataclass(frozen=True)
class Bad:
    """Stands in the stream for what could not be read."""

    kind: str  # few different ones, to be counted
    reason: str = ""


# --- which files -----------------------------------------------------------------------------------------------------


def find_files(sources, skip=()):
    """The files that `sources` name, in order: (list of InputFile, list of {"name", "revision"} for the manifest)."""
    files, origins = [], []
    for source in map(str, sources):
        found = [_files_of(part) for part in _parts(source)]
        files += _without([file for some, _ in found for file in some], skip)
        origins.append({"name": _name(source)} if source.startswith("@") else found[0][1])
    for file in files:
        if not file.name.endswith(FORMATS):
            raise CorpusError(f"{file.name}: the name must end in one of {', '.join(FORMATS)}")
        if file.urls and ".." in re.split(r"[/\\]", file.path):
            raise CorpusError(f"{file.name}: a path with .. leads out of the cache")
    if not files:
        raise CorpusError(f"there is no file ending in one of {', '.join(FORMATS)} in {' '.join(map(str, sources))}")
    return files, origins


def fingerprint(source, skip=()):
    """What tells a source from another, found without a network: {"name", "files", "sha256"}.

    The checksum is over the names, the sizes, the beginnings and the ends of its files, or over a remote source's name;
    None where the source is not there.
    """
    contents = []
    try:
        for part in _parts(source):
            files = [] if _is_remote(part) else _without(_files_of(part)[0], skip)
            contents += [part] if _is_remote(part) else [[file.name, file.size, file.edges] for file in files]
        digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    except CorpusError:
        digest = None
    return {"name": _name(source), "files": len(contents), "sha256": digest}


def _name(source):
    file = Path(os.path.expanduser(source.removeprefix("@")))
    return valid_unicode(source if _is_remote(source) else file.resolve().name)


def _is_remote(source):
    return source == "slimpajama" or source.startswith(("hf://", "http://", "https://"))


def _parts(source):
    """The sources that a list @FILE names, one a line; any other source is the only one."""
    if not source.startswith("@"):
        return [source]
    path = Path(os.path.expanduser(source[1:]))
    if not path.is_file():
        raise CorpusError(f"--source {source}: there is no list {path}")
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    return [line.strip() for line in lines if line.strip()]


def _without(files, skip):
    return [file for file in files if not any(fnmatch(Path(file.name).name, pattern) for pattern in skip)]


def _files_of(source):
    if source == "slimpajama":
        return slimpajama_files()
    if source.startswith("hf://datasets/"):
        match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", source)
        if not match:
            raise CorpusError(f"{source} must be hf://datasets/OWNER/NAME@REVISION/BEGINNING_OF_PATHS")
        return hub_files(match[1], match[2] or "main", match[3] or "")
    if source.startswith(("http://", "https://")):
        name = re.sub(r"^https?://", "", source).split("?")[0]
        return [InputFile(name, f"web/{name.replace(':', '_')}", (source,))], {"name": source}
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.endswith(FORMATS) and file.is_file()
                       and not (file.name == "merges.txt" and (file.parent / "vocab.json").exists()))  # a tokenizer's
        names = [f"{path.resolve().name}/{file.relative_to(path).as_posix()}" for file in found]
        return [local_file(name, file) for name, file in zip(names, found)], {"name": _name(source)}
    if path.is_file():
        return [local_file(path.name, path)], {"name": _name(source)}
    raise CorpusError(f"--source {source}: there is no such file or folder")


def local_file(name, path):
    """The `InputFile` of a file on this machine. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        edges = hashlib.sha256(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        edges.update(file.read(EDGE))
    return InputFile(valid_unicode(name), str(Path(path).resolve()), size=size, edges=edges.hexdigest())


def check_unchanged(files):
    """Raises CorpusError where one of these local files is no longer what it was, OSError where it is gone."""
    for file in files:
        if not file.urls and local_file(file.name, file.path) != file:
            raise CorpusError(f"{file.path} is no longer the file with which the run began: --restart begins anew")


def slimpajama_files():
    """SlimPajama's files from the first copy on the Hub that answers, or those that are in the cache or the mirror."""
    reasons = []
    for repository, revision, beginning in SLIMPAJAMA:
        try:
            return hub_files(repository, revision, beginning)
        except CorpusError as error:
            reasons.append(f"  {error}")
    raise CorpusError("\n".join([
        "SlimPajama could not be had:", *reasons,
        "Another copy is named by --source hf://datasets/OWNER/NAME@REVISION/BEGINNING_OF_PATHS, or by a folder of",
        "files in one of its formats; another server with the same files by the environment variable HF_ENDPOINT.",
    ]))  # fmt: skip


def hub_files(repository, revision, beginning=""):
    """The files of a data set on the Hugging Face Hub whose paths begin with `beginning`, with sizes and checksums.

    Where the Hub cannot be asked, those that are in the cache or in a mirror folder. HF_ENDPOINT names another server.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    api = f"{endpoint}/api/datasets/{repository}"
    try:
        if not re.fullmatch("[0-9a-f]{40}", revision):
            revision = _ask(f"{api}/revision/{quote(revision, safe='')}")[0]["sha"]
        folder = beginning.rpartition("/")[0]
        url, entries, asked = f"{api}/tree/{revision}/{quote(folder)}?recursive=true", [], set()
        while url:
            if url in asked:
                raise ValueError("the list of files goes round in a circle")
            asked.add(url)
            page, url = _ask(url)
            entries += page
        files = [
            InputFile(entry["path"], f"hub/{repository}/{entry['path']}",
                      (f"{endpoint}/datasets/{repository}/resolve/{revision}/{quote(entry['path'])}",),
                      entry["size"], (entry.get("lfs") or {}).get("oid"))
            for entry in entries
            if entry["type"] == "file" and entry["path"].startswith(beginning) and entry["path"].endswith(FORMATS)
        ]  # fmt: skip
    except (Failed, AttributeError, KeyError, TypeError, ValueError) as error:
        files = _files_at_hand(f"hub/{repository}/{beginning}")
        if not files:
            raise CorpusError(f"{repository}: its list of files could not be had ({_short(error)})") from None
        print(f"{repository}: the list of files could not be had; using the {len(files)} that are here")
    if not files:
        raise CorpusError(f"{repository} has no file that begins with {beginning!r} and ends in {', '.join(FORMATS)}")
    return sorted(files, key=lambda file: file.name), {"name": repository, "revision": revision}


def _ask(url):
    """(the JSON that `url` answers with, the address of the next page or None)."""
    if is_offline():
        raise ValueError("LLM_OFFLINE is set")
    answer, response = ask_json("GET", url)
    return answer, response.links.get("next", {}).get("url")


def _files_at_hand(beginning):
    """Files in the cache, and in a mirror that is a folder, whose relative paths begin with `beginning`."""
    mirror = os.environ.get("LLM_MIRROR", "").strip()
    roots = [data_dir(), ROOT / os.path.expanduser(mirror or data_dir())]
    folder = beginning.rpartition("/")[0]
    found = {path.relative_to(root).as_posix() for root in roots for path in (root / folder).rglob("*")}
    names = sorted(name for name in found if name.startswith(beginning) and name.endswith(FORMATS))
    return [InputFile("/".join(name.split("/")[3:]), name, ("file is at hand",)) for name in names]


def _short(error):
    return valid_unicode(" ".join(str(error).split())[:150])


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch_input(file, progress=False):
    """The local path of an input file, downloaded into the cache first if need be (see `shared.data`)."""
    if not file.urls:
        return Path(file.path)
    entry = Dataset(name=file.name, about="", licence="", file=file.path, size=file.size, sha256=file.sha256,
                    urls=tuple(file.urls))  # fmt: skip
    return data.fetch(entry, progress=progress)


def local_files(files, first=0, keep=True):
    """(number, file, its path) for the files from number `first` on; the next one is fetched while one is read.

    With `keep` False, a file that was downloaded is deleted when the next one is asked for.
    """
    coming = _in_background(fetch_input, files[first], True) if first < len(files) else None
    for number in range(first, len(files)):
        path = coming.result()
        coming = _in_background(fetch_input, files[number + 1]) if number + 1 < len(files) else None
        yield number, files[number], path
        if files[number].urls and not keep and path.is_relative_to(data_dir()):
            path.unlink(missing_ok=True)


def _in_background(function, *arguments):
    """A Future of the call; unlike those of an executor, its thread does not keep an interrupted program alive."""
    future = Future()

    def call():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


# --- reading ---------------------------------------------------------------------------------------------------------


def read_records(path, start=0):
    """The raw records of a file from number `start` on: JSON lines as bytes, {"text", "meta"} as dict, or `Bad`."""
    path = Path(path)
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path, start)
        elif path.name.endswith(".txt"):
            yield from islice(_text_documents(_lines(unpacked(path))), start, None)
        else:
            yield from islice((line for line in _lines(unpacked(path)) if line != b""), start, None)
    except (OSError, ValueError, OverflowError) as error:
        yield Bad(UNREADABLE, _short(error))


def _lines(blocks):
    """The lines, without their ends and byte order marks; `Bad` for one that is too long."""
    rest, size = [], 0  # the beginning of a line whose end has not come yet
    for block in blocks:
        *lines, last = block.split(b"\n")
        for line in lines:
            yield _line([*rest, line], size + len(line))
            rest, size = [], 0
        size += len(last)
        rest.append(last)
        if size > LONGEST_RECORD:
            rest = []
    if size:
        yield _line(rest, size)


def _line(pieces, size):
    if size > LONGEST_RECORD:
        return Bad("a line that is too long", f"{size:,} bytes; more than {LONGEST_RECORD:,} are not read")
    return b"".join(pieces).rstrip(b"\r").removeprefix(BYTE_ORDER_MARK)


def _text_documents(lines):
    """Documents of a text file: what stands between lines <|endoftext|>, in pieces of about a megabyte."""
    piece, size = [], 0
    for line in lines:
        ends = line == END_OF_DOCUMENT
        if isinstance(line, Bad):
            yield line
        elif not ends:
            piece.append(line)
            size += len(line) + 1
        if piece and (ends or size >= TEXT_PIECE):
            yield {"text": b"\n".join(piece).decode("utf-8", errors="replace")}
            piece, size = [], 0
    if piece:
        yield {"text": b"\n".join(piece).decode("utf-8", errors="replace")}


def _parquet_rows(path, start):
    """The rows of a Parquet file as {"text", "meta"}, a few at a time; row groups before `start` are skipped unread."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise ValueError(f"it has no column text, but {', '.join(names)}")
            groups, rows_before = [], 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if groups or rows_before + rows > start:
                    groups.append(group)
                else:
                    rows_before += rows
            columns = [name for name in ("text", "meta") if name in names]
            for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=columns):
                for row in batch.to_pylist():
                    if rows_before >= start:
                        yield row
                    rows_before += 1
    except pyarrow.ArrowException as error:
        raise ValueError(_short(error)) from None
