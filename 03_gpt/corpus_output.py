"""What `prepare_corpus.py` writes: the shards of token ids, the manifest that describes them, the report of the run.

    for shard in open_shards("data/slimpajama", "train"):  # each [tokens] uint16, mapped, not read
        ...
"""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from corpus_input import CorpusError

from shared.download import sha256_of

SPLITS = ("train", "validation")
COUNTED = ("tokens", "documents", "text_bytes")


class ShardWriter:
    """The shards of one split. An open shard is a file NAME.part, and `state()` all that is needed to go on with it."""

    def __init__(self, folder, split, shard_tokens, state=None):
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.shards = state["shards"] if state else []
        self.open = state["open"] if state else dict(tokens=0, documents=0, text_bytes=0)
        self.file = None
        self.name_finished()
        if self.open["tokens"]:
            size = 2 * self.open["tokens"]
            if not self.part.is_file() or self.part.stat().st_size < size:
                raise CorpusError(f"{self.part} is not as the last run left it; --restart begins anew")
            os.truncate(self.part, size)  # what a killed run wrote after its last commit

    @property
    def part(self):
        return self.folder / f"{self.split}_{len(self.shards):05d}.bin.part"

    def add(self, document):
        """Write one document. True if the shard is full with it."""
        if self.file is None:
            self.file = open(self.part, "ab" if self.open["tokens"] else "wb")
        self.file.write(document.tokens)
        self.open["tokens"] += len(document.tokens) // 2
        self.open["documents"] += 1
        self.open["text_bytes"] += document.text_bytes
        return self.open["tokens"] >= self.shard_tokens

    def finish_shard(self):
        """Close the open shard, if there is one, and take it into the list; its name stays .part until the commit."""
        if self.open["tokens"]:
            self.flush()
            self.close()
            self.shards.append({"file": self.part.stem, **self.open, "sha256": sha256_of(self.part)})
            self.open = dict(tokens=0, documents=0, text_bytes=0)

    def flush(self):
        """Bring to the disk what was written so far."""
        if self.file is not None:
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
        return dict(shards=self.shards, open=self.open)


def summary(shards):
    """A split's entry in the manifest."""
    return {what: sum(shard[what] for shard in shards) for what in COUNTED} | {"shards": shards}


def write_json(path, value):
    """Write aside, then rename, so that there is always a whole file."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    os.replace(part, path)


def read_manifest(folder):
    """The manifest of a corpus. Raises FileNotFoundError where there is none, ValueError where it is damaged."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; prepare_corpus.py makes it")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] == 1 and manifest["dtype"] == "uint16" and set(manifest["splits"]) == set(SPLITS):
            return manifest
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is damaged, or not a corpus manifest of format 1")


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


def merge(parts, out):
    """Make one corpus of several with the same tokenizer: its manifest lists their shards, renumbered, in order.

    The shards are linked, or copied where that is not possible. Duplicates between the parts stay.
    """
    manifests = [read_manifest(part) for part in parts]
    first = manifests[0]
    for part, manifest in zip(parts, manifests):
        if manifest["tokenizer"]["sha256"] != first["tokenizer"]["sha256"]:
            raise CorpusError(f"{part} was made with another tokenizer than {parts[0]}")
    if out.exists() and any(out.iterdir()):
        raise CorpusError(f"{out} is not empty")
    out.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split in SPLITS:
        shards = []
        for part, manifest in zip(parts, manifests):
            open_shards(part, split)  # are they all there?
            for shard in manifest["splits"][split]["shards"]:
                name = f"{split}_{len(shards):05d}.bin"
                link_or_copy(Path(part) / shard["file"], out / name)
                shards.append(shard | {"file": name})
        splits[split] = summary(shards)
    shutil.copytree(Path(parts[0]) / "tokenizer", out / "tokenizer")
    report = Report()
    for part in parts:
        report.add(json.loads((Path(part) / "report.json").read_text(encoding="utf-8")))
    write_json(out / "report.json", report.state())
    source = {
        "name": first["source"]["name"], "revision": first["source"]["revision"],
        "files": [file for manifest in manifests for file in manifest["source"]["files"]],
    }  # fmt: skip
    settings = first["settings"] | {"shard": [manifest["settings"]["shard"] for manifest in manifests]}
    manifest = first | {"source": source, "settings": settings, "splits": splits}
    write_json(out / "manifest.json", manifest)
    return manifest


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
        """A picture of the table: for each source, the share of its records that was kept, and why the others went."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names, total = sorted(self.sources, reverse=True), self.total()
        fates = ["kept"] + sorted(f for f in total if "duplicate" in f or f.startswith(("dropped", "bad")))
        figure = Figure(figsize=(9, 1.6 + 0.35 * len(names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes, left = figure.add_subplot(), np.zeros(len(names))
        for fate in fates:
            shares = np.array([100 * self.sources[name][fate] / self.sources[name]["records"] for name in names])
            axes.barh(names, shares, left=left, label=fate)
            left += shares
        axes.set(xlabel="share of the records, %", xlim=(0, 100))
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        figure.savefig(path, dpi=110)
