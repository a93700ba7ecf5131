"""What `prepare_corpus.py` writes: the shards of token ids, the manifest that describes them, the report of the run.

    verify_corpus("data/slimpajama")  # are all files those that the manifest describes?
    for shard in open_shards("data/slimpajama", "train"):  # each [tokens] uint16, mapped, not read
        ...
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from corpus_input import CorpusError

from shared.files import sha256_of, write_atomically

SPLITS = ("train", "validation")
COUNTED = ("tokens", "documents", "text_bytes")
TOKENIZER_FILES = ("vocab.json", "merges.txt")
SHARD = re.compile(r"(train|validation)_(\d{5,})\.bin")
OWN_NAME = re.compile(  # of what a run may write into its folder
    rf"state\.db(-journal)?|((manifest|report|checked)\.json|{SHARD.pattern})(\.part)?|report\.png"
    r"|tokenizer(\.part)?(/(vocab\.json|merges\.txt))?"
)
# The manifest's entries on how it was made.
PROVENANCE = {"source": dict, "inputs": list, "settings": dict, "tokenizer": dict, "files": dict}
LARGE = 2**26  # bytes; that a larger file is right is remembered, in checked.json, until the file changes


# --- shards -----------------------------------------------------------------------------------------------------------


class ShardWriter:
    """The shards of one split. An open shard is a file NAME.part, and `state()` all that is needed to go on with it."""

    def __init__(self, folder, split, shard_tokens, state=None):
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards = state["shards"] if state else []
        self.open = state["open"] if state else dict(tokens=0, documents=0, text_bytes=0)
        self.file, self.sha256 = None, hashlib.sha256()
        self.name_finished()
        check_files(folder, {shard["file"]: shard["sha256"] for shard in self.shards})
        if self.open["tokens"]:
            size = 2 * self.open["tokens"]
            if self.part.is_file() and self.part.stat().st_size >= size:
                self.sha256.update(np.memmap(self.part, np.uint8, "r", shape=(size,)))
            if self.sha256.hexdigest() != self.open["sha256"]:
                raise CorpusError(f"{self.part} is not as the last run left it; --restart begins anew")
            os.truncate(self.part, size)  # what a killed run wrote after its last commit

    @property
    def part(self):
        return self.folder / f"{self.split}_{len(self.shards):05d}.bin.part"

    def add(self, document):
        """Write one document. True if the shard is full with it."""
        if self.file is None:
            self.file = open(self.part, "ab" if self.open["tokens"] else "wb")
        with naming(self.part):
            self.file.write(document.tokens)
        self.sha256.update(document.tokens)
        self.open["tokens"] += len(document.tokens) // 2
        self.open["documents"] += 1
        self.open["text_bytes"] += document.text_bytes
        return self.open["tokens"] >= self.shard_tokens

    def finish_shard(self):
        """Close the open shard, if there is one, and take it into the list; its name stays .part until the commit."""
        if self.open["tokens"]:
            self.flush()
            self.close()
            self.shards.append({"file": self.part.stem, **self.open, "sha256": self.sha256.hexdigest()})
            self.open, self.sha256 = dict(tokens=0, documents=0, text_bytes=0), hashlib.sha256()

    def flush(self):
        """Bring to the disk what was written so far."""
        if self.file is not None:
            with naming(self.part):
                self.file.flush()
                os.fsync(self.file.fileno())

    def close(self):
        if self.file is not None:
            self.file, file = None, self.file
            file.close()

    def name_finished(self):
        """Give finished shards their names: after a commit, and at the start, for a run killed right after one."""
        for shard in self.shards[-1:]:
            part = self.folder / f"{shard['file']}.part"
            if part.is_file():
                os.replace(part, self.folder / shard["file"])

    def state(self):
        return dict(shards=self.shards, open=self.open | {"sha256": self.sha256.hexdigest()})


@contextlib.contextmanager
def naming(path):
    """An OSError leaves this context with the name of the file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def summary(shards):
    """A split's entry in the manifest."""
    return {what: sum(shard[what] for shard in shards) for what in COUNTED} | {"shards": shards}


def write_json(path, value):
    """Write a JSON file atomically."""
    with write_atomically(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


# --- a finished corpus ------------------------------------------------------------------------------------------------


def read_manifest(folder, needed=()):
    """The manifest of a corpus. Raises FileNotFoundError where there is none, ValueError where it is damaged or has not
    the entries that are `needed`."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; prepare_corpus.py makes it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shards = [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]
        good = manifest["format"] == 1 and manifest["dtype"] == "uint16" and set(manifest["splits"]) == set(SPLITS)
        good = good and all(SHARD.fullmatch(shard["file"]) and shard["tokens"] > 0 for shard in shards)
        good = good and all(type(manifest["splits"][split]["tokens"]) is int for split in SPLITS)
        good = good and all(isinstance(manifest[name], kind) for name, kind in PROVENANCE.items() if name in manifest)
        good = good and all({"name", "files", "sha256"} <= set(entry) for entry in manifest.get("inputs", []))
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise ValueError(f"{path} is damaged, or not a corpus manifest of format 1")
    missing = [name for name in needed if name not in manifest]
    if missing:
        raise ValueError(f"{path} has no entry {missing[0]}: an earlier version made it; --restart makes it anew")
    return manifest


def open_shards(folder, split):
    """The shards of "train" or "validation" as memory maps, each [tokens] uint16.

    Raises FileNotFoundError when a file is missing, ValueError when one has not the size that the manifest says.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    maps = []
    for shard in read_manifest(folder)["splits"][split]["shards"]:
        path, size = Path(folder) / shard["file"], 2 * shard["tokens"]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the manifest names it")
        if path.stat().st_size != size:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes; the manifest says {size:,}")
        maps.append(np.memmap(path, "<u2", mode="r"))
    return maps


def verify_corpus(folder):
    """Check every shard, and the tokenizer, against the checksums in the manifest, which is returned.

    Raises FileNotFoundError or ValueError, naming the file that is missing, damaged or another. It takes the time of
    reading the corpus once; files of more than 64 MB are read again only when they have changed since.
    """
    manifest = read_manifest(folder)
    for split in SPLITS:
        open_shards(folder, split)  # the sizes
    for name in TOKENIZER_FILES:
        if not (path := Path(folder) / "tokenizer" / name).is_file():
            raise FileNotFoundError(f"{path} is missing; prepare_corpus.py --restart makes the corpus anew")
    check_files(Path(folder), checksums(manifest))
    return manifest


def checksums(manifest):
    """File name -> sha256, of each file that a finished run made; None for those that may change, the reports."""
    shards = [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    others = {name: sha256 for name, sha256 in manifest.get("files", {}).items() if OWN_NAME.fullmatch(name)}
    return {shard["file"]: shard.get("sha256") for shard in shards} | others


def check_files(folder, expected):
    """Raises FileNotFoundError or ValueError where one of the files `expected` (name -> sha256) is not as it was."""
    note, known, added = folder / "checked.json", {}, False
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(note.read_text(encoding="utf-8")))
    for name, sha256 in expected.items():
        if sha256 is None:
            continue
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; prepare_corpus.py --restart makes the corpus anew")
        stat = path.stat()
        version = [sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        if known.get(name) == version:
            continue
        if sha256_of(path) != sha256:
            raise ValueError(f"{path} is damaged, or another file than the one that was made: its checksum differs; "
                             "prepare_corpus.py --restart makes the corpus anew")  # fmt: skip
        if stat.st_size > LARGE:
            known[name], added = version, True
    if added and not note.is_symlink():
        with contextlib.suppress(OSError):  # where it cannot be written, they are read again
            write_json(note, known)


def files_with_own_names(folder):
    """The names of all files in `folder` that are called as what a run writes, whoever made them."""
    paths = [path for pattern in ("*", "tokenizer/*", "tokenizer.part/*") for path in folder.glob(pattern)]
    names = {path.relative_to(folder).as_posix() for path in paths}
    folders = {name for name in ("tokenizer", "tokenizer.part") if (folder / name).is_dir()}
    return {name for name in names if OWN_NAME.fullmatch(name)} - {f for f in folders if not (folder / f).is_symlink()}


def remove_files(folder, names):
    """Delete these files, the records of the run last, so that a removal that was cut off can be done again."""
    records = ("manifest.json", "state.db-journal", "state.db")
    for name in (*sorted(names - set(records)), *records):
        if name in names:
            (folder / name).unlink(missing_ok=True)
    for name in ("tokenizer", "tokenizer.part"):
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            (folder / name).rmdir()


def merge(parts, out):
    """Make one corpus of several with the same tokenizer: its manifest lists their shards, renumbered, in order.

    The shards are linked, or copied where that is not possible. Duplicates between the parts stay.
    """
    if len({Path(part).resolve() for part in parts}) < len(parts):
        raise CorpusError("--merge names a folder twice: its documents would count double")
    manifests = [verify_corpus(part) and read_manifest(part, PROVENANCE) for part in parts]
    first, report = manifests[0], Report()
    for part, manifest in zip(parts, manifests):
        if any(manifest["tokenizer"][key] != first["tokenizer"][key] for key in ("sha256", "n_vocab", "eot_token")):
            raise CorpusError(f"{part} was made with another tokenizer than {parts[0]}")
        report.add(read_report(part))
    if out.exists() and any(out.iterdir()):
        raise CorpusError(f"{out} is not empty")
    splits, copies = {}, {}  # copies: name in the new folder -> file
    for split in SPLITS:
        shards = []
        for part, manifest in zip(parts, manifests):
            for shard in manifest["splits"][split]["shards"]:
                name = f"{split}_{len(shards):05d}.bin"
                copies[name] = Path(part) / shard["file"]
                shards.append(shard | {"file": name})
        splits[split] = summary(shards)
    source = {
        "name": first["source"]["name"], "revision": first["source"]["revision"],
        "files": [file for manifest in manifests for file in manifest["source"]["files"]],
    }  # fmt: skip
    settings = first["settings"] | {"shard": [manifest["settings"]["shard"] for manifest in manifests]}
    manifest = first | {"source": source, "settings": settings, "splits": splits}
    manifest["files"] = {name: sha256 for name, sha256 in first["files"].items() if name != "report.png"}
    try:
        (out / "tokenizer").mkdir(parents=True, exist_ok=True)
        for name, file in copies.items():
            link_or_copy(file, out / name)
        for name in TOKENIZER_FILES:
            shutil.copyfile(Path(parts[0]) / "tokenizer" / name, out / "tokenizer" / name)
        write_json(out / "report.json", report.state())
        write_json(out / "manifest.json", manifest)
    except BaseException:
        remove_files(out, files_with_own_names(out))  # the folder was empty: they are all from here
        raise
    return manifest


def read_report(folder):
    """What report.json holds. Raises ValueError, naming it, where that is not a report."""
    path = Path(folder) / "report.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        Report().add(state)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged, or not the report of a corpus") from None
    return state


def link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# --- the report -------------------------------------------------------------------------------------------------------


class Report:
    """What became of the records, by source: a count for each fate, each cleaning step that changed something."""

    def __init__(self, state=None):
        self.sources, self.problems = {}, []
        if state:
            self.add(state)

    def add(self, state):
        for name, counts in state["sources"].items():
            self.sources.setdefault(name, Counter()).update(counts)
        self.problems = (self.problems + state["problems"])[:100]

    def count(self, document, fate, where):
        counts = self.sources.setdefault(document.group, Counter())
        counts.update(["records", fate, *(f"changed by {step}" for step in document.changed)])
        counts["bytes read"] += document.read_bytes
        if fate == "kept":
            counts["bytes kept"] += document.text_bytes
        if fate.startswith("bad") and len(self.problems) < 100:
            detail = f" ({document.problem})" if document.problem else ""
            self.problems.append(f"{where}: {fate.removeprefix('bad: ')}{detail}")

    def state(self):
        sources = {name: dict(sorted(counts.items())) for name, counts in sorted(self.sources.items())}
        return {"sources": sources, "problems": self.problems}

    def total(self):
        return sum(self.sources.values(), Counter())

    def table(self):
        """The counts as text: a line for each, a column for each of the largest sources and one for all."""
        largest = sorted(sorted(self.sources, key=lambda name: -self.sources[name]["records"])[:7])
        columns = {name: self.sources[name] for name in largest} | {"all": self.total()}
        first = ["records", "kept", "bytes read", "bytes kept"]
        rows = first + sorted(set(self.total()) - set(first))
        wide = max(map(len, rows))
        widths = {name: max(len(name.removeprefix("RedPajama")), 14) for name in columns}
        lines = [" ".join([" " * wide, *(f"{name.removeprefix('RedPajama'):>{widths[name]}}" for name in columns)])]
        for row in rows:
            lines.append(" ".join([f"{row:{wide}}", *(f"{counts[row]:{widths[n]},}" for n, counts in columns.items())]))
        return "\n".join(lines)

    def plot(self, path):
        """The same as a picture, for the 50 largest: which share of a source was kept, and why the rest was not."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        largest, total = sorted(self.sources, key=lambda name: -self.sources[name]["records"])[:50], self.total()
        names = sorted(largest, reverse=True)
        fates = ["kept"] + sorted(f for f in total if "duplicate" in f or f.startswith(("dropped", "bad")))
        figure = Figure(figsize=(9, 1.6 + 0.35 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes, left = figure.add_subplot(), np.zeros(len(names))
        with naming(path), matplotlib.rc_context({"text.parse_math": False}):  # "$" in a name is a plain sign
            for fate in fates:
                shares = np.array([100 * self.sources[name][fate] / self.sources[name]["records"] for name in names])
                axes.barh(names, shares, left=left, label=fate)
                left += shares
            axes.set(xlabel="share of the records, %", xlim=(0, 100))
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
            figure.savefig(path, dpi=110)
