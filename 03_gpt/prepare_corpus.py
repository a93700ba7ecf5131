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
given again, and ends with the same bytes. Before anything is deleted or written, all that was given is checked; and in
its folder, a run touches only what a run has made. What is done to one text is in corpus_rules.py, how sources are read
in corpus_input.py, what a run remembers in corpus_state.py, how shards are written and opened in corpus_output.py.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
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
    check_unchanged,
    fetch_input,
    find_files,
    fingerprint,
    local_files,
    read_records,
)
from corpus_output import (  # noqa: E402
    COUNTED,
    PROVENANCE,
    SHARD,
    SPLITS,
    TOKENIZER_FILES,
    Report,
    ShardWriter,
    check_files,
    checksums,
    files_with_own_names,
    merge,
    naming,
    open_shards,  # noqa: F401  what reads a corpus imports it from here
    read_manifest,
    remove_files,
    summary,
    verify_corpus,
    write_json,
)
from corpus_rules import (  # noqa: E402
    CLEANING,
    FILTERS,  # noqa: F401  (likewise)
    band_keys,
    clean,
    document_hash,
    in_validation,
    minhash,
    short_signature,
    valid_unicode,
    why_dropped,
)
from corpus_state import SeenBefore, State  # noqa: E402

from shared import data  # noqa: E402
from shared.files import sha256_of  # noqa: E402
from shared.tokenizer import BPETokenizer, from_tiktoken, load_tokenizer  # noqa: E402

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
    near: float | None = 0.8  # from which Jaccard similarity on a text is a duplicate; None: only equal texts are
    validation: float = 0.005  # share of the documents
    limit: int | None = None  # bytes of text
    tokenizer: str = "gpt2"  # or a folder, or "train 8192"
    shard_tokens: int = 100_000_000
    shard: str | None = None  # "0/8": every eighth file, from the first

    def __post_init__(self):
        """Raises ValueError for a value out of its bounds; NaN is out of all bounds."""
        part = re.fullmatch(r"(\d+)/(\d+)", self.shard or "0/1")
        entries = re.fullmatch(r"train (\d+)", self.tokenizer if self.tokenizer.startswith("train ") else "train 257")
        for name, is_right, bounds in (
            ("sources", self.sources and not isinstance(self.sources, str) and all(map(str.strip, self.sources)),
             "a tuple of at least one, none empty"),
            ("skip", not isinstance(self.skip, str), "a tuple"),
            ("near", self.near is None or 0 < self.near <= 1, "more than 0 and at most 1; without it: --no-near"),
            ("validation", 0 <= self.validation <= 1, "from 0 to 1"),
            ("limit", self.limit is None or 1 <= self.limit <= 10**18, "from 1 byte to 10^18 bytes"),
            ("tokenizer", entries and 257 <= int(entries[1]) <= 2**16, "a folder, or train 257 to train 65536"),
            ("shard_tokens", 1 <= self.shard_tokens <= 10**12, "from 1 to 10^12"),
            ("shard", part and int(part[1]) < int(part[2]), "I/N with I from 0 to N - 1"),
        ):  # fmt: skip
            if not is_right:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {bounds}")


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
    return record["text"], valid_unicode(name[:80]) if isinstance(name, str) else None


def begins_with(value, beginning):
    """Whole words: "CC BY" is the beginning of "CC BY 4.0", but not of "CC BY-SA 4.0"."""
    return isinstance(value, str) and re.match(rf"{re.escape(beginning)}(?![-\w])", valid_unicode(value)) is not None


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
    text = record["text"] if isinstance(record, dict) else record  # in a Parquet file it may be of any type
    return len(text) if isinstance(text, (str, bytes)) else 0


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


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a new run is to read; all that can be checked before it begins was checked."""

    files: list[InputFile]
    origins: list[dict]  # name and revision of each source
    inputs: list[dict]  # the fingerprint of each source


def make_plan(settings, folder):
    """Find the files, look at the tokenizer, and change nothing. Raises CorpusError, OSError or ValueError."""
    files, origins = find_files(settings.sources, settings.skip)
    if settings.shard:
        number, of = map(int, settings.shard.split("/"))
        files = files[number::of]
    if not files:
        raise CorpusError(f"--shard {settings.shard}: there are not so many files")
    if is_folder(settings.tokenizer):
        own = {(folder / name).resolve() for name in ("tokenizer", "tokenizer.part")}
        if Path(settings.tokenizer).resolve() in own:
            raise CorpusError(f"--tokenizer {settings.tokenizer}: the tokenizer of the new corpus is to be there; copy "
                              "this one to another folder, and name that")  # fmt: skip
        check_tokenizer(load_tokenizer(Path(settings.tokenizer)), settings.tokenizer)
    return Plan(files, origins, fingerprints(settings))


def fingerprints(settings):
    return [fingerprint(source, settings.skip) for source in settings.sources]


class Run:
    """A run into one folder: which files, how far it is, and all that it has to remember."""

    def __init__(self, folder, settings, plan=None):
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        self.state = State(folder)
        try:
            self._open(plan)
        except BaseException:
            self.state.close()
            raise

    def _open(self, plan):
        self.seen = SeenBefore(self.state.connection, self.settings.near)
        begun = self._load("settings") is not None
        if not begun:
            self._begin(plan or make_plan(self.settings, self.folder))
        check_settings(self.folder, self._load("settings"), asdict(self.settings))
        self.files = [InputFile(**file | {"urls": tuple(file["urls"])}) for file in self._load("files")]
        self.origins, self.inputs = self._load("origins"), self._load("inputs")
        progress = self._load("progress") or {"position": (0, 0), "done": False, "report": None, "splits": {}}
        self.position, self.done = tuple(progress["position"]), progress["done"]
        if begun and not self.done:
            check_unchanged(self.files[self.position[0] :])
            for before, now in zip(self.inputs, fingerprints(self.settings)):
                if now["sha256"] and now["files"] > before["files"]:  # those that were read may be gone by now
                    raise CorpusError(f"{now['name']} had {before['files']:,} files when the run began, now it has "
                                      f"{now['files']:,}: take the new ones away, or --restart")  # fmt: skip
        self.report = Report(progress["report"])
        states, size = progress["splits"], self.settings.shard_tokens
        self.writers = {split: ShardWriter(self.folder, split, size, states.get(split)) for split in SPLITS}
        parts = [part for writer in self.writers.values() for part in (*writer.shards, writer.open)]
        self.total = Counter({what: sum(part[what] for part in parts) for what in COUNTED})  # written so far
        self.uncommitted = 0  # bytes of text
        self.seconds = Counter()  # by stage; over all workers

    def _begin(self, plan):
        """Write down what is to be done."""
        refuse_strangers(self.folder, {"state.db", "state.db-journal"})  # again: now no other process can interfere
        self._save("settings", asdict(self.settings))
        self._save("files", [asdict(file) for file in plan.files])
        self._save("origins", plan.origins)
        self._save("inputs", plan.inputs)
        self.state.commit()

    def _load(self, name):
        return self.state.load(name)

    def _save(self, name, value):
        self.state.save(name, value)

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
        self.state.commit()
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
        self.state.close()

    def manifest(self, encoding):
        names = [origin["name"] for origin in self.origins]
        source = {
            "name": " + ".join(names), "revision": next((o["revision"] for o in self.origins if "revision" in o), None),
            "files": [file.name for file in self.files[: self.position[0] + 1]],
        }  # fmt: skip
        tokenizer = {
            "name": self.tokenizer_name(), "n_vocab": encoding.n_vocab, "eot_token": encoding.eot_token,
            "sha256": self._load("tokenizer")["tokenizer/merges.txt"],
        }  # fmt: skip
        files = self._load("tokenizer") | {"report.json": None} | ({"report.png": None} if self._load("plot") else {})
        settings = asdict(self.settings) | {"sources": names, "tokenizer": kind_of_tokenizer(self.settings)}
        splits = {split: summary(writer.shards) for split, writer in self.writers.items()}
        return {"format": 1, "source": source, "inputs": self.inputs, "settings": settings, "tokenizer": tokenizer,
                "dtype": "uint16", "splits": splits, "files": files}  # fmt: skip

    def tokenizer_name(self):
        wanted = self.settings.tokenizer
        published = data.registry.REGISTRY["gpt2_vocab"].sha256
        if wanted == "gpt2" and self._load("tokenizer")["tokenizer/merges.txt"] != published:
            return "bundled-bpe"  # GPT-2's own could not be had
        return f"bpe-{wanted.split()[1]}" if wanted.startswith("train ") else valid_unicode(Path(wanted).name)


def check_settings(folder, saved, wanted):
    """Raises CorpusError when the run in `folder` was begun with settings that differ from those `wanted` now."""
    wanted = json.loads(json.dumps(wanted))
    other = [f"{name} {saved[name]!r}, now {wanted[name]!r}" for name in saved if saved[name] != wanted.get(name)]
    if other:
        raise CorpusError(f"{folder} was made with other settings ({'; '.join(other)}): give the same ones, another "
                          "--out, or --restart")  # fmt: skip


def check_finished(folder, settings):
    """The manifest of a finished corpus. Raises CorpusError where these settings would make another, ValueError or
    FileNotFoundError where a file is no longer what it was. Sources that are no longer there cannot be compared."""
    manifest, inputs = read_manifest(folder, PROVENANCE), fingerprints(settings)
    saved, wanted = ({"sources": [entry["name"] for entry in entries]} for entries in (manifest["inputs"], inputs))
    wanted |= {"tokenizer": kind_of_tokenizer(settings)}
    check_settings(folder, manifest["settings"] | saved, asdict(settings) | wanted)
    for before, now in zip(manifest["inputs"], inputs):
        if now["sha256"] not in (None, before["sha256"]):
            raise CorpusError(f"{folder} was made from other files: {now['name']} had {before['files']:,}, now it has "
                              f"{now['files']:,}, or their contents differ; give the same ones, another --out, or "
                              "--restart")  # fmt: skip
    verify_corpus(folder)
    if is_folder(settings.tokenizer) and not same_bpe(settings.tokenizer, folder / "tokenizer"):
        raise CorpusError(f"{folder} was made with another tokenizer than the one in {settings.tokenizer}: give the "
                          "same one, another --out, or --restart")  # fmt: skip
    return manifest


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def is_folder(tokenizer):
    return tokenizer != "gpt2" and not tokenizer.startswith("train ")


def kind_of_tokenizer(settings):
    """As the manifest's settings name it: gpt2, train 8192, folder NAME."""
    wanted = settings.tokenizer
    return f"folder {valid_unicode(Path(wanted).resolve().name)}" if is_folder(wanted) else wanted


def same_bpe(one, other):
    one, other = BPETokenizer().load(one), BPETokenizer().load(other)
    return (one.merges, one.special_tokens) == (other.merges, other.special_tokens)


def check_tokenizer(encoding, folder):
    """Raises CorpusError where shards cannot be written with this `tiktoken.Encoding`."""
    if encoding.n_vocab > 2**16:
        raise CorpusError(f"{folder}: the tokenizer has {encoding.n_vocab:,} entries; two bytes hold {2**16:,}")
    if "<|endoftext|>" not in encoding.special_tokens_set:
        raise CorpusError(f"{folder}: the tokenizer has no <|endoftext|>, which must end each document")


def get_tokenizer(run):
    """The `tiktoken.Encoding` of the run, from OUT/tokenizer, which is made first if need be."""
    folder, made = run.folder / "tokenizer", run._load("tokenizer")
    if made is None:
        part = run.folder / "tokenizer.part"
        part.mkdir(exist_ok=True)
        with naming(part):
            make_tokenizer(run, part)
        folder.mkdir(exist_ok=True)
        made = {f"tokenizer/{name}": sha256_of(part / name) for name in TOKENIZER_FILES}
        for name in TOKENIZER_FILES:
            os.replace(part / name, folder / name)
        with contextlib.suppress(OSError):  # a user has put something there
            part.rmdir()
        run._save("tokenizer", made)
        run.state.commit()
    check_files(run.folder, made)
    encoding = load_tokenizer(folder)
    check_tokenizer(encoding, folder)
    return encoding


def make_tokenizer(run, part):
    """Write the files of the tokenizer that the settings want into the folder `part`."""
    wanted = run.settings.tokenizer
    if wanted.startswith("train "):
        text = tokenizer_text(run.files, run.settings)
        print(f"training a tokenizer on {len(text):,} characters")
        BPETokenizer().train(text, int(wanted.split()[1])).save(part)
    elif wanted == "gpt2":
        from_tiktoken(load_tokenizer("gpt2")).save(part)
    else:
        BPETokenizer().load(wanted).save(part)


def tokenizer_text(files, settings):
    """About 15 MB of clean text for the training of a tokenizer: the first of each file; nothing from validation."""
    texts = []
    for file in files:
        left = TOKENIZER_TEXT // len(files)
        for record in read_records(fetch_input(file)):
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


# --- all of it --------------------------------------------------------------------------------------------------------


def prepare(folder, settings, workers=1, keep=True, progress=True, plot=False, restart=False):
    """Make the corpus in `folder`, or go on with it; returns its manifest. The report is in report.json.

    With `restart`, what an earlier run made there is deleted first; by then all that can be checked was checked. Raises
    CorpusError where it cannot begin, with nothing changed, or cannot go on, with what was done so far kept; OSError,
    naming the file, when the disk is at fault.
    """
    folder = Path(folder)
    try:
        own, begun = look_into(folder)
        if "manifest.json" in own and not begun and not restart:
            manifest = check_finished(folder, settings)
            print(f"{folder} is complete")
            return manifest
        plan = make_plan(settings, folder) if restart or not begun else None
        refuse_strangers(folder, own, plot)
        if restart:
            for file in plan.files if keep else plan.files[:1]:
                if file.urls and file.size is None:  # in no list of a server's: is it to be had at all?
                    fetch_input(file, progress)
            remove_files(folder, own)
        return run_to_the_end(folder, settings, plan, workers, keep, progress, plot)
    except sqlite3.Error as error:
        raise OSError(f"{folder / 'state.db'}: {error}") from error


def look_into(folder):
    """(the names of the files that a run has made in `folder`, has one begun that is not finished?)."""
    if not folder.exists():
        return set(), False
    if not folder.is_dir():
        raise CorpusError(f"--out {folder} is not a folder")
    there, own, begun = files_with_own_names(folder), set(), False
    if "state.db" in there:
        with contextlib.closing(State(folder)) as state:
            begun, progress, plot = state.load("settings") is not None, state.load("progress"), state.load("plot")
        own = {"state.db", "state.db-journal"}
    if begun:  # before it began, no file had such a name: refuse_strangers
        numbers = {split: len(progress["splits"][split]["shards"]) if progress else 0 for split in SPLITS}
        shards = {name: SHARD.match(name) for name in there}
        own |= {name for name, shard in shards.items() if not shard or int(shard[2]) <= numbers[shard[1]]}
        own -= {"tokenizer", "tokenizer.part"} | ({"report.png"} if not plot else set())
    elif "manifest.json" in there:
        own |= {"manifest.json", "checked.json", *checksums(read_manifest(folder))}
    return {name for name in own if (folder / name).is_symlink() or not (folder / name).is_dir()}, begun


def refuse_strangers(folder, own, plot=False):
    """Raises CorpusError where a run would write, in `folder`, on a file that is not its `own`, or through a link."""
    for name in sorted(files_with_own_names(folder)):
        path = folder / name
        if name not in own and (name != "report.png" or plot):
            raise CorpusError(f"{path} is in the way, and no record says that a run has made it: move it, or choose "
                              "another --out")  # fmt: skip
        if path.is_symlink() and not SHARD.fullmatch(name):
            raise CorpusError(f"{path} is a symbolic link, which no run has made: remove it, or choose another --out")


def run_to_the_end(folder, settings, plan, workers, keep, progress, plot):
    with contextlib.closing(Run(folder, settings, plan)) as run:
        encoding = get_tokenizer(run)
        if plot:
            run._save("plot", True)
        run.commit()
        if not run.done:
            stream(run, encoding, workers, keep, progress)
            run.finish()
        write_json(folder / "report.json", run.report.state() | {"seconds": dict(run.seconds)})
        if plot and run.report.sources:
            run.report.plot(folder / "report.png")
        kept, manifest = run.total["documents"], run.manifest(encoding)
        if kept:
            write_json(folder / "manifest.json", manifest)
    print(run.report.table())
    for problem in run.report.problems[:5]:
        print(problem)
    if not kept:
        raise CorpusError(f"no document was kept; what became of the records is in {folder / 'report.json'}; "
                          "--restart begins anew, with other sources or settings")  # fmt: skip
    (folder / "state.db").unlink()
    for split, other in (SPLITS, SPLITS[::-1]):
        if not manifest["splits"][split]["documents"]:
            print(f"the {split} part is empty: all {kept:,} documents are in {other} (--validation "
                  f"{settings.validation:g}), and pretrain.py needs both. Give more text, or another --validation, "
                  "and --restart.")  # fmt: skip
    return manifest


def stream(run, encoding, workers, keep, progress):
    """Run all batches through the workers and into the shards, from where the run is to its end or its limit."""
    sizes = np.cumsum([file.size or 0 for file in run.files])
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


# --- the command line -------------------------------------------------------------------------------------------------


def size_in_bytes(text):
    """5GB, 200MB, 1.5e6."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) *([kMGT]?)B?", text)
    size = float(match[1]) * 1000 ** " kMGT".index(match[2] or " ") if match else 0
    if not 1 <= size <= 10**18:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 1 byte to 10^18 bytes, such as 500MB or 5GB")
    return int(size)


def folder_name(text):
    """A folder; an empty name, as of a variable of the shell that is not set, would be the one where we are."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a folder")
    return Path(text)


def key_and_value(text):
    """licence=CC BY 4.0"""
    key, _, value = valid_unicode(text).partition("=")
    if not (key and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def arguments(argv):
    parser = argparse.ArgumentParser(prog="prepare_corpus.py", description="Make token shards for pretraining.")
    add = parser.add_argument
    add("--source", nargs="+", action="extend", metavar="SOURCE", help="files, folders, URLs, @FILE, slimpajama, hf://")
    add("--out", type=folder_name, required=True, metavar="DIR", help="the folder to make, or to go on with")
    add("--limit", type=size_in_bytes, metavar="SIZE", help="stop at so much text, such as 5GB")
    add("--skip", type=valid_unicode, action="append", default=[], metavar="PATTERN",
        help="leave out files with such names: 'test_*'")  # fmt: skip
    add("--keep-meta", type=key_and_value, action="append", default=[], metavar="KEY=VALUE",
        help="only records whose meta[KEY] begins with VALUE, or with another VALUE given for that KEY")  # fmt: skip
    add("--keep-html", action="store_true", help="leave tags and entities as they are (for program code)")
    add("--near", type=float, default=0.8, help="drop a text that is so much like an earlier one (default: 0.8)")
    add("--no-near", action="store_true", help="drop only texts that are equal to an earlier one")
    add("--validation", type=float, default=0.005, metavar="SHARE", help="of the documents (default: 0.005)")
    add("--tokenizer", default="gpt2", help="gpt2, or a folder with vocab.json and merges.txt, or tokenizer.json")
    add("--train-tokenizer", type=int, metavar="SIZE", help="train one of SIZE entries on the first of the text")
    add("--shard-tokens", type=int, default=100_000_000, metavar="N", help="size of a shard (default: 100,000,000)")
    add("--shard", metavar="I/N", help="only every N-th file, from number I (from 0) on")
    add("--merge", nargs="+", type=folder_name, metavar="DIR", help="make one corpus of several, such as of all shards")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    add("--no-keep", action="store_true", help="delete a downloaded file once it was read")
    add("--plot", action="store_true", help="draw report.png as well")
    add("--restart", action="store_true", help="delete what an earlier run made in DIR, and begin anew")
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if bool(args.source) == bool(args.merge):
        parser.error("give --source or --merge")
    if args.merge and given - {"merge", "out"}:
        parser.error("--merge goes with no other option than --out")
    for one, other in (("tokenizer", "train_tokenizer"), ("near", "no_near")):
        if {one, other} <= given:
            parser.error(f"--{one} and --{other.replace('_', '-')} exclude each other")
    if not 1 <= args.workers <= 1024:
        parser.error(f"--workers {args.workers}: it must be from 1 to 1024")
    try:
        args.settings = settings_from(args) if args.source else None
    except ValueError as error:
        parser.error(str(error))
    return args


def settings_from(args):
    return Settings(
        sources=tuple(args.source), skip=tuple(args.skip), keep_meta=tuple(args.keep_meta), html=not args.keep_html,
        near=None if args.no_near else args.near, validation=args.validation, limit=args.limit,
        tokenizer=args.tokenizer if args.train_tokenizer is None else f"train {args.train_tokenizer}",
        shard_tokens=args.shard_tokens, shard=args.shard,
    )  # fmt: skip


def main(argv=None):
    """The command; returns the exit status."""
    args = arguments(argv)
    with contextlib.suppress(AttributeError):  # names of any script on a terminal of any kind
        sys.stdout.reconfigure(errors="backslashreplace")
    again = "the same command, without --restart," if args.restart else "the same command"
    try:
        if args.merge:
            manifest = merge(args.merge, args.out)
        else:
            manifest = prepare(args.out, args.settings, args.workers, not args.no_keep, plot=args.plot,
                               restart=args.restart)  # fmt: skip
    except KeyboardInterrupt:
        print(f"\ninterrupted; {again} goes on from the last finished shard")
        return 130
    except (CorpusError, ValueError) as error:
        print(error)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
        if (args.out / "state.db").exists():
            print(f"What was finished is kept; once this is put right, {again} goes on.")
        return 1
    for split, entry in manifest["splits"].items():
        print(f"{split}: {entry['tokens']:,} tokens, {entry['documents']:,} documents, {len(entry['shards'])} shards")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
