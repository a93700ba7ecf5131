"""From raw text to training data: stream, clean, deduplicate, tokenize, and write token shards with a manifest.

    python 03_gpt/prepare_corpus.py --source slimpajama --limit 5GB --out data/slimpajama
    python 03_gpt/prepare_corpus.py --source my_texts/ more.jsonl.zst --train-tokenizer 8192 --out data/my_corpus
    python 03_gpt/prepare_corpus.py --merge data/part0 data/part1 --out data/whole

A source is a file, a folder, a URL, @FILE (a list of those), `slimpajama`, or any data set of the Hugging Face Hub as
hf://datasets/OWNER/NAME@REVISION/BEGINNING_OF_PATHS. Formats: .jsonl, .jsonl.gz, .jsonl.zst ({"text": ..., "meta":
{...}} on each line, as in SlimPajama and RedPajama), .parquet (with a column `text`), .txt.

The main process reads, finds duplicates and writes, in the order of the input; worker processes clean and tokenize.
Only a few megabytes of text are in memory at a time. All that a run knows of what it has seen is in one SQLite file,
committed together with the lengths of the shards: a run that was killed goes on from there when the same command is
given again, and ends with the same bytes. What is done to one text is in corpus_rules.py, how sources are read in
corpus_input.py, how shards are written and opened in corpus_output.py.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]  # its own folder, and the course's

from corpus_input import (  # noqa: E402
    Bad,
    CorpusError,
    InputFile,
    fetch,
    find_files,
    local_files,
    read_records,
)
from corpus_output import (  # noqa: E402
    COUNTED,
    SPLITS,
    Report,
    ShardWriter,
    merge,
    open_shards,  # noqa: F401  what reads a corpus imports it from here
    read_manifest,
    summary,
    write_json,
)
from corpus_rules import (  # noqa: E402
    CLEANING,
    FILTERS,  # noqa: F401  (likewise)
    band_keys,
    clean,
    document_hash,
    in_validation,
    likeness,
    minhash,
    short_signature,
    why_dropped,
)

from shared import data  # noqa: E402
from shared.download import sha256_of  # noqa: E402

TOKENIZER_TEXT = 15_000_000  # bytes of text from which a tokenizer is trained
BATCH_BYTES, BATCH_RECORDS = 2**20, 256  # what is handed to a worker at a time
COMMIT_EVERY = 256_000_000  # bytes of text between two commits, at most; one comes with every finished shard


@dataclass(frozen=True)
class Settings:
    """All that decides what the result is. Speed (`--workers`) is not part of it."""

    sources: tuple[str, ...]
    skip: tuple[str, ...] = ()  # patterns of file names
    keep_meta: tuple[tuple[str, str], ...] = ()  # (key, how its value must begin); several for one key: any of them
    html: bool = True  # strip it
    near: float | None = 0.8  # from which likeness on a text is a duplicate; None: only equal texts are
    validation: float = 0.005  # share of the documents
    limit: int | None = None  # bytes of text
    tokenizer: str = "gpt2"  # or a folder, or "train 8192"
    shard_tokens: int = 100_000_000
    shard: str | None = None  # "0/8": every eighth file, from the first


# --- one record: this part runs in the worker processes ---------------------------------------------------------------


@dataclass(slots=True)
class Document:
    """What the workers make of one record."""

    group: str
    fate: str | None = None  # why it is not kept; None so far
    problem: str = ""  # more about a bad record
    changed: tuple = ()  # names of the cleaning steps that changed it
    read_bytes: int = 0
    text_bytes: int = 0
    key: int = 0
    bands: np.ndarray | None = None  # [16] int64
    signature: np.ndarray | None = None  # [128] uint16
    tokens: bytes = b""


def text_of_record(record, keep_meta=()):
    """(text, the record's own name for its source or None). Raises ValueError with the kind of what is wrong."""
    if isinstance(record, bytes):
        try:
            record = json.loads(record.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError):
            raise ValueError("bad: no JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError("bad: no text")
    meta = record["meta"] if isinstance(record.get("meta"), dict) else record
    for key in {key for key, _ in keep_meta}:
        if not any(begins_with(meta.get(key), value) for other, value in keep_meta if other == key):
            raise ValueError("dropped: other meta")
    name = meta.get("redpajama_set_name")
    return record["text"], name if isinstance(name, str) else None


def begins_with(value, beginning):
    """Whole words: "CC BY" is the beginning of "CC BY 4.0", but not of "CC BY-SA 4.0"."""
    return isinstance(value, str) and re.match(rf"{re.escape(beginning)}(?![-\w])", value) is not None


def prepare_record(record, group, settings, encoding, seconds=None):
    """Clean, filter, hash and tokenize one record: a `Document`. `seconds` adds up the time of each stage."""
    if isinstance(record, Bad):
        return Document(group, f"bad: {record.kind}", record.reason)
    clock = [time.perf_counter()]
    try:
        text, name = text_of_record(record, settings.keep_meta)
    except ValueError as problem:
        return Document(group, str(problem))
    document = Document(name or group, read_bytes=len(text.encode("utf-8", errors="replace")))
    steps = CLEANING if settings.html else {name: step for name, step in CLEANING.items() if name != "strip_html"}
    text, changed = clean(text, steps)
    reason = why_dropped(text)
    document.changed, document.fate = tuple(changed), reason and f"dropped: {reason}"
    clock.append(time.perf_counter())
    if document.fate is None:
        document.text_bytes = len(text.encode("utf-8"))
        document.key = document_hash(text)
        if settings.near:
            minima = minhash(text)
            document.bands, document.signature = band_keys(minima), short_signature(minima)
        clock.append(time.perf_counter())
        try:
            document.tokens = tokenize(text, encoding)
        except ValueError as problem:  # tiktoken's regular expression gives up on a million blanks in a row
            document.fate, document.problem = "bad: cannot be tokenized", str(problem)
        clock.append(time.perf_counter())
    if seconds is not None:
        for stage, begin, end in zip(("clean", "hash", "tokenize"), clock, clock[1:]):
            seconds[stage] += end - begin
    return document


def tokenize(text, encoding):
    """Token ids and the end-of-text token, as little-endian uint16 bytes; a special token in the text is plain text."""
    ids = encoding.encode_to_numpy(text, disallowed_special=())
    return np.append(ids, encoding.eot_token).astype("<u2").tobytes()


_worker = {}  # in each worker process: the settings and the encoding


def start_worker(settings, encoding):
    """Ctrl-C is the main process' business; and when that is gone, even by kill -9, so are its workers."""
    _worker.update(settings=settings, encoding=encoding)
    parent = multiprocessing.parent_process()
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(records, group):
    """A batch of records -> (documents, seconds by stage)."""
    seconds = Counter()
    settings, encoding = _worker["settings"], _worker["encoding"]
    return [prepare_record(record, group, settings, encoding, seconds) for record in records], seconds


# --- many records, in order -------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Some records of one file; `first` is the number of the first of them."""

    file_number: int
    file: InputFile
    first: int
    records: list


def batches(files, position=(0, 0), keep=True, seconds=None):
    """The records of all files from `position` (file number, record number) on, as `Batch`es of about a megabyte."""
    for number, file, path in local_files(files, position[0], keep):
        first = position[1] if number == position[0] else 0
        records, size, began = [], 0, time.perf_counter()
        for record in read_records(path, first):
            records.append(record)
            size += record_size(record)
            if size >= BATCH_BYTES or len(records) == BATCH_RECORDS:
                if seconds is not None:
                    seconds["read"] += time.perf_counter() - began
                yield Batch(number, file, first, records)
                records, size, first, began = [], 0, first + len(records), time.perf_counter()
        if records:
            yield Batch(number, file, first, records)


def record_size(record):
    """About how many bytes of text a raw record holds."""
    if isinstance(record, dict):
        return len(record["text"] or "")
    return len(record) if isinstance(record, bytes) else 0


def process(all_batches, settings, encoding, workers, function=work):
    """(batch, what `function` makes of its records) for each batch, in order; few batches are under way at a time."""
    if workers == 1:
        start_worker(settings, encoding)
        for batch in all_batches:
            yield batch, function(batch.records, batch.file.group)
        return
    context = multiprocessing.get_context("spawn")  # the same on every system, and with threads in the main process
    pool = ProcessPoolExecutor(workers, context, start_worker, (settings, encoding))
    under_way = deque()
    try:
        for batch in all_batches:
            under_way.append((batch, pool.submit(function, batch.records, batch.file.group)))
            batch.records = None  # not to be kept until their turn comes
            if len(under_way) > 2 * workers:
                batch, future = under_way.popleft()
                yield batch, future.result()
        for batch, future in under_way:
            yield batch, future.result()
    except BrokenExecutor:
        raise CorpusError("a worker process died (out of memory?); run it again, with fewer --workers") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# --- duplicates -------------------------------------------------------------------------------------------------------


class SeenBefore:
    """What is known of the documents that were kept, in SQLite: their hashes, their band keys, their signatures.

    `look_up` a batch, then `check_in` its documents in order. What is new goes to SQLite with the next `look_up` or
    `flush`, and lasts once the connection commits.
    """

    def __init__(self, connection, near):
        self.connection, self.near = connection, near
        connection.execute("CREATE TABLE IF NOT EXISTS exact (key INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE IF NOT EXISTS bands (key INTEGER PRIMARY KEY, document INTEGER)")
        connection.execute("CREATE TABLE IF NOT EXISTS signatures (document INTEGER PRIMARY KEY, minima BLOB)")
        self.documents = connection.execute("SELECT coalesce(max(document) + 1, 0) FROM signatures").fetchone()[0]
        self.new_exact, self.new_bands, self.new_signatures = set(), {}, {}  # since the last flush
        self.exact, self.bands = set(), {}  # what the tables hold of the batch at hand

    def look_up(self, documents):
        """Fetch what the tables hold of these documents, in a query or two."""
        self.flush()
        self.exact = {key for (key,) in self._rows("SELECT key FROM exact", [document.key for document in documents])}
        keys = [key for document in documents for key in document.bands.tolist()] if self.near else []
        self.bands = dict(self._rows("SELECT key, document FROM bands", keys))

    def _rows(self, query, keys):
        for i in range(0, len(keys), 10_000):  # SQLite takes 32,766 at most
            part = keys[i : i + 10_000]
            yield from self.connection.execute(f"{query} WHERE key IN ({','.join('?' * len(part))})", part)

    def check_in(self, document):
        """"exact duplicate", "near duplicate", or None for a new document, which is remembered."""
        if document.key in self.exact or document.key in self.new_exact:
            return "exact duplicate"
        if self.near:
            keys = document.bands.tolist()
            candidates = {self.bands.get(key, self.new_bands.get(key)) for key in keys} - {None}
            if any(likeness(self._signature(other), document.signature) >= self.near for other in sorted(candidates)):
                return "near duplicate"
            for key in keys:
                self.new_bands.setdefault(key, self.documents)
            self.new_signatures[self.documents] = document.signature
            self.documents += 1
        self.new_exact.add(document.key)
        return None

    def _signature(self, number):
        if number in self.new_signatures:
            return self.new_signatures[number]
        row = self.connection.execute("SELECT minima FROM signatures WHERE document = ?", (number,)).fetchone()
        return np.frombuffer(row[0], "<u2")

    def flush(self):
        """Hand what is new to SQLite, in the order of the keys, which is that on the disk."""
        signatures = [(number, minima.astype("<u2").tobytes()) for number, minima in self.new_signatures.items()]
        insert = self.connection.executemany
        insert("INSERT OR IGNORE INTO exact VALUES (?)", [(key,) for key in sorted(self.new_exact)])
        insert("INSERT OR IGNORE INTO bands VALUES (?, ?)", sorted(self.new_bands.items()))
        insert("INSERT INTO signatures VALUES (?, ?)", signatures)
        self.exact |= self.new_exact
        self.bands |= self.new_bands
        self.new_exact, self.new_bands, self.new_signatures = set(), {}, {}


# --- the run ----------------------------------------------------------------------------------------------------------


class Run:
    """A run into one folder: which files, how far it is, and all that it has to remember, in state.db."""

    def __init__(self, folder, settings):
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        self.connection = sqlite3.connect(folder / "state.db", isolation_level=None, timeout=1)
        try:
            self._open()
        except BaseException:
            self.connection.close()
            raise

    def _open(self):
        try:
            self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.connection.execute("PRAGMA cache_size = -65536")  # 64 MB
            self.connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise CorpusError(f"another process is at work in {self.folder}") from None
            raise
        self.connection.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT)")
        self.seen = SeenBefore(self.connection, self.settings.near)
        progress = self._load("progress") or self._begin()
        check_settings(self.folder, self._load("settings"), asdict(self.settings))
        self.files = [InputFile(**file) for file in self._load("files")]
        self.origins = self._load("origins")
        self.position, self.done = tuple(progress["position"]), progress["done"]
        self.report = Report(progress["report"])
        states, size = progress["splits"], self.settings.shard_tokens
        self.writers = {split: ShardWriter(self.folder, split, size, states.get(split)) for split in SPLITS}
        parts = [part for writer in self.writers.values() for part in (*writer.shards, writer.open)]
        self.total = Counter({what: sum(part[what] for part in parts) for what in COUNTED})  # written so far
        self.uncommitted = 0  # bytes of text
        self.seconds = Counter()  # by stage; over all workers

    def _begin(self):
        """Find the files, and write down what is to be done."""
        if any(self.folder.glob("*.bin")):
            raise CorpusError(f"{self.folder} holds shards of another run: choose another --out, or --restart")
        files, origins = find_files(self.settings.sources, self.settings.skip)
        if self.settings.shard:
            number, of = map(int, self.settings.shard.split("/"))
            files = files[number::of]
        if not files:
            raise CorpusError(f"--shard {self.settings.shard}: there are not so many files")
        self._save("settings", asdict(self.settings))
        self._save("files", [asdict(file) for file in files])
        self._save("origins", origins)
        return {"position": (0, 0), "done": False, "report": None, "splits": {}}

    def _load(self, name):
        row = self.connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def _save(self, name, value):
        self.connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value)))

    def take(self, batch, documents):
        """Decide on each document, in order, and write those that are kept. False when the limit is reached."""
        began, limit = time.perf_counter(), self.settings.limit
        self.seen.look_up([document for document in documents if document.fate is None])
        for number, document in enumerate(documents, start=batch.first):
            fate = document.fate
            if fate is None:
                fate = self.seen.check_in(document) or "kept"
                if fate == "kept" and limit and self.total["text_bytes"] + document.text_bytes > limit:
                    return False
            self.report.count(document, fate, f"{batch.file.name}, record {number}")
            self.position = (batch.file_number, number + 1)
            if fate == "kept":
                self.write(document)
        self.seconds["find duplicates and write"] += time.perf_counter() - began
        return True

    def write(self, document):
        writer = self.writers[SPLITS[in_validation(document.key, self.settings.validation)]]
        full = writer.add(document)
        self.total.update(tokens=len(document.tokens) // 2, documents=1, text_bytes=document.text_bytes)
        self.uncommitted += document.text_bytes
        if full:
            writer.finish_shard()
        if full or self.uncommitted >= COMMIT_EVERY:
            self.commit()

    def commit(self):
        """Make lasting what was done so far: first the bytes of the shards, then, at one stroke, all that is known."""
        for writer in self.writers.values():
            writer.flush()
        self.seen.flush()
        splits = {split: writer.state() for split, writer in self.writers.items()}
        progress = {"position": self.position, "done": self.done, "report": self.report.state(), "splits": splits}
        self._save("progress", progress)
        self.connection.execute("COMMIT")
        self.connection.execute("BEGIN EXCLUSIVE")
        self.uncommitted = 0
        for writer in self.writers.values():
            writer.name_finished()

    def finish(self):
        """Close the last shards."""
        for writer in self.writers.values():
            writer.finish_shard()
        self.done = True
        self.commit()

    def close(self):
        """Let go of the files; what was not committed will be done again."""
        for writer in self.writers.values():
            with contextlib.suppress(OSError):  # the disk may be full
                writer.close()
        self.connection.close()

    def manifest(self, encoding):
        names = [origin["name"] for origin in self.origins]
        source = {
            "name": " + ".join(names), "revision": next((o["revision"] for o in self.origins if "revision" in o), None),
            "files": [file.name for file in self.files[: self.position[0] + 1]],
        }  # fmt: skip
        tokenizer = {
            "name": self.tokenizer_name(), "n_vocab": encoding.n_vocab, "eot_token": encoding.eot_token,
            "sha256": sha256_of(self.folder / "tokenizer" / "vocab.bpe"),
        }  # fmt: skip
        settings = asdict(self.settings) | {"sources": names, "tokenizer": tokenizer["name"]}
        splits = {split: summary(writer.shards) for split, writer in self.writers.items()}
        return {"format": 1, "source": source, "settings": settings, "tokenizer": tokenizer, "dtype": "uint16",
                "splits": splits}  # fmt: skip

    def tokenizer_name(self):
        wanted, merges = self.settings.tokenizer, self.folder / "tokenizer" / "vocab.bpe"
        if wanted == "gpt2" and sha256_of(merges) != data.REGISTRY["gpt2_vocab"].sha256:
            return "bundled-bpe"  # GPT-2's own could not be had
        return f"bpe-{wanted.split()[1]}" if wanted.startswith("train ") else Path(wanted).name


def check_settings(folder, saved, wanted):
    """Raises CorpusError when the run in `folder` was begun with settings that differ from those `wanted` now."""
    wanted = json.loads(json.dumps(wanted))
    other = [f"{name} {saved[name]!r}, now {wanted[name]!r}" for name in saved if saved[name] != wanted.get(name)]
    if other:
        raise CorpusError(f"{folder} was made with other settings ({'; '.join(other)}): give the same ones, another "
                          "--out, or --restart")  # fmt: skip


def get_tokenizer(run):
    """The `tiktoken.Encoding` of the run, from OUT/tokenizer, which is made first if need be."""
    from shared.text import BPETokenizer, load_tokenizer  # not at the top: the workers import this file, but no torch

    folder, wanted = run.folder / "tokenizer", run.settings.tokenizer
    if not folder.is_dir():
        part = run.folder / "tokenizer.part"
        part.mkdir(exist_ok=True)
        if wanted.startswith("train "):
            text = tokenizer_text(run.files, run.settings)
            print(f"training a tokenizer on {len(text):,} characters")
            BPETokenizer().train(text, int(wanted.split()[1])).save(part)
        elif wanted == "gpt2":
            for path in (data.fetch("gpt2_vocab"), data.fetch("gpt2_encoder")):
                shutil.copyfile(path, part / path.name)
        else:
            BPETokenizer().load(wanted).save(part)
        os.replace(part, folder)
    encoding = load_tokenizer(folder)
    if encoding.n_vocab > 2**16:
        raise CorpusError(f"the tokenizer has {encoding.n_vocab:,} entries; two bytes hold {2**16:,}")
    return encoding


def tokenizer_text(files, settings):
    """About 15 MB of clean text for the training of a tokenizer: the first of each file; nothing from validation."""
    texts = []
    for file in files:
        left = TOKENIZER_TEXT // len(files)
        for record in read_records(fetch(file)):
            with contextlib.suppress(ValueError):
                text = clean(text_of_record(record, settings.keep_meta)[0])[0]
                if why_dropped(text) is None and not in_validation(document_hash(text), settings.validation):
                    texts.append(text)
                    left -= len(text.encode("utf-8"))
            if left <= 0:
                break
    if not texts:
        raise CorpusError("there is no text from which a tokenizer could be trained")
    return "\n".join(texts)


def prepare(folder, settings, workers=1, keep=True, progress=True, plot=False):
    """Make the corpus in `folder`, or go on with it; returns its manifest. The report is in report.json.

    Raises CorpusError where that is not possible: with what was done so far kept, unless the message says otherwise.
    """
    folder = Path(folder)
    if (folder / "manifest.json").is_file() and not (folder / "state.db").exists():
        manifest = read_manifest(folder)
        saved = {k: v for k, v in manifest["settings"].items() if k not in ("sources", "tokenizer")}
        check_settings(folder, saved, asdict(settings))
        print(f"{folder} is complete")
        return manifest
    with contextlib.closing(Run(folder, settings)) as run:
        encoding = get_tokenizer(run)
        run.commit()
        if not run.done:
            stream(run, encoding, workers, keep, progress)
            run.finish()
        write_json(folder / "report.json", run.report.state() | {"seconds": dict(run.seconds)})
        kept, manifest = run.total["documents"], run.manifest(encoding)
        if kept:
            write_json(folder / "manifest.json", manifest)
    (folder / "state.db").unlink()
    if plot and run.report.sources:
        run.report.plot(folder / "report.png")
    print(run.report.table())
    for problem in run.report.problems[:5]:
        print(problem)
    if not kept:
        raise CorpusError(f"no document was kept; what became of the records is in {folder / 'report.json'}")
    return manifest


def stream(run, encoding, workers, keep, progress):
    """Run all batches through the workers and into the shards, from where the run is to its end or its limit."""
    sizes = np.cumsum([file.size or file_size(file) for file in run.files])
    bar = tqdm(total=run.settings.limit, initial=run.total["text_bytes"], unit="B", unit_scale=True, mininterval=0.5,
               disable=not progress, file=sys.stdout)  # fmt: skip
    incoming = batches(run.files, run.position, keep, run.seconds)
    with bar, contextlib.closing(process(incoming, run.settings, encoding, workers)) as results:
        for batch, (documents, seconds) in results:
            run.seconds.update(seconds)
            go_on = run.take(batch, documents)
            if not run.settings.limit and batch.first == 0 < batch.file_number:  # an estimate, from the files done
                bar.total = int(bar.n * sizes[-1] / max(1, sizes[batch.file_number - 1]))
            bar.set_postfix_str(f"{run.total['documents']:,} documents, {run.total['tokens']:,} tokens", refresh=False)
            bar.update(run.total["text_bytes"] - bar.n)
            if not go_on:
                return


def file_size(file):
    path = Path(file.path)
    return path.stat().st_size if path.is_file() else 0


# --- the command line -------------------------------------------------------------------------------------------------


def size_in_bytes(text):
    """5GB, 200MB, 1.5e6."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) *([kMGT]?)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " "))


def key_and_value(text):
    """licence=CC BY 4.0"""
    key, _, value = text.partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def part_of(text):
    """0/8"""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return text


def share(text):
    """0 to 1"""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def arguments(argv):
    parser = argparse.ArgumentParser(prog="prepare_corpus.py", description="Make token shards for pretraining.")
    add = parser.add_argument
    add("--source", nargs="+", action="extend", metavar="SOURCE", help="files, folders, URLs, @FILE, slimpajama, hf://")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to make, or to go on with")
    add("--limit", type=size_in_bytes, metavar="SIZE", help="stop at so much text, such as 5GB")
    add("--skip", action="append", default=[], metavar="PATTERN", help="leave out files with such names: 'test_*'")
    add("--keep-meta", type=key_and_value, action="append", default=[], metavar="KEY=VALUE",
        help="only records whose meta[KEY] begins with VALUE, or with another VALUE given for that KEY")  # fmt: skip
    add("--keep-html", action="store_true", help="leave tags and entities as they are (for program code)")
    add("--near", type=share, default=0.8, help="drop a text that is so much like an earlier one (default: 0.8)")
    add("--no-near", action="store_true", help="drop only texts that are equal to an earlier one")
    add("--validation", type=share, default=0.005, metavar="SHARE", help="of the documents (default: 0.005)")
    add("--tokenizer", default="gpt2", help="gpt2, or a folder with vocab.bpe and encoder.json")
    add("--train-tokenizer", type=int, metavar="SIZE", help="train one of SIZE entries on the first of the text")
    add("--shard-tokens", type=int, default=100_000_000, metavar="N", help="size of a shard (default: 100,000,000)")
    add("--shard", type=part_of, metavar="I/N", help="only every N-th file, from number I (from 0) on")
    add("--merge", nargs="+", type=Path, metavar="DIR", help="make one corpus of several, such as those of all shards")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    add("--no-keep", action="store_true", help="delete a downloaded file once it was read")
    add("--plot", action="store_true", help="draw report.png as well")
    add("--restart", action="store_true", help="delete what is in DIR, and begin anew")
    args = parser.parse_args(argv)
    if bool(args.source) == bool(args.merge):
        parser.error("give --source or --merge")
    if args.train_tokenizer is not None and not 257 <= args.train_tokenizer <= 2**16:
        parser.error("--train-tokenizer: from 257 to 65536")
    if args.shard_tokens < 1 or args.workers < 1:
        parser.error("--shard-tokens and --workers: at least 1")
    return args


def settings_from(args):
    return Settings(
        sources=tuple(args.source), skip=tuple(args.skip), keep_meta=tuple(args.keep_meta), html=not args.keep_html,
        near=None if args.no_near else args.near, validation=args.validation, limit=args.limit,
        tokenizer=f"train {args.train_tokenizer}" if args.train_tokenizer else args.tokenizer,
        shard_tokens=args.shard_tokens, shard=args.shard,
    )  # fmt: skip


def remove_corpus(folder):
    """Delete what this script writes, and nothing else."""
    for pattern in ("state.db*", "manifest.json*", "report.*", "train_*.bin*", "validation_*.bin*"):
        for path in folder.glob(pattern):
            path.unlink()
    for name in ("tokenizer", "tokenizer.part"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main(argv=None):
    """The command; returns the exit status."""
    args = arguments(argv)
    try:
        if args.merge:
            manifest = merge(args.merge, args.out)
        else:
            if args.restart:
                remove_corpus(args.out)
            manifest = prepare(args.out, settings_from(args), args.workers, not args.no_keep, plot=args.plot)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last finished shard")
        return 130
    except (CorpusError, OSError, ValueError, sqlite3.Error) as error:
        print(f"\n{error}\nFinished shards are as they were; once this is put right, the same command goes on.")
        return 1
    for split, entry in manifest["splits"].items():
        print(f"{split}: {entry['tokens']:,} tokens, {entry['documents']:,} documents, {len(entry['shards'])} shards")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
