"""Every file the lessons read: found in the cache, in a mirror or at its official address, and checked before use.

    path = data.fetch("the_verdict")              # a local path; downloads at most once
    python -m shared.data --list                  # what there is, and where each file is now
    python -m shared.data --all --to /media/usb   # make a mirror, such as a workshop's USB stick

Environment (relative paths count from the course folder):
LLM_DATA_DIR  the cache; default `data/` in the course folder
LLM_MIRROR    a folder or an http(s) address with the same relative paths, asked before the official addresses
LLM_OFFLINE   1: never ask the official addresses (a mirror that is set is still asked)
"""

import argparse
import difflib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from shared.download import Failed, download, mismatch, sha256_of

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "shared" / "samples"


@dataclass(frozen=True)
class Dataset:
    """One file: where it comes from, how it is recognised, under which licence it stands.

    `file` is its path in the cache and in a mirror, `sample` the path of its stand-in under `shared/samples`.
    `size` is in bytes, exact, or None. Where `sha256` is None, that of the first download is recorded beside the file
    in the cache (FILE.sha256), and from then on the file must have that one.
    """

    name: str
    about: str
    licence: str
    file: str
    size: int | None
    sha256: str | None
    urls: tuple[str, ...]
    sample: str | None = None


_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_HUB = "https://huggingface.co/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e"
_RASBT = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"

REGISTRY = {entry.name: entry for entry in (
    Dataset(name="the_verdict", about="Edith Wharton, The Verdict (1908), a short story", licence="public domain",
            file="the-verdict.txt", sample="the-lamp-room.txt", size=20_479,
            sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
            urls=(f"{_RASBT}/ch02/01_main-chapter-code/the-verdict.txt",)),
    Dataset(name="gpt2_vocab", about="GPT-2's byte-pair encoding: the merges", licence="Modified MIT (OpenAI gpt-2)",
            file="bpe/vocab.bpe", sample="bpe/vocab.bpe", size=456_318,
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            urls=(f"{_OPENAI}/vocab.bpe", f"{_HUB}/merges.txt")),
    Dataset(name="gpt2_encoder", about="GPT-2's byte-pair encoding: token to id", licence="Modified MIT (OpenAI gpt-2)",
            file="bpe/encoder.json", sample="bpe/encoder.json", size=1_042_301,
            sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            urls=(f"{_OPENAI}/encoder.json", f"{_HUB}/vocab.json")),
)}


class DownloadError(OSError):
    """A file could not be had. The message names each address tried, with the reason, and the way out by hand."""


def fetch(name, *, sample_ok=True, progress=True):
    """The local path of the data called `name`, brought here first if need be.

    Looks in the cache, in the mirror, at the official addresses in turn. Where none of them gives it and there is a
    bundled sample, says so in one line and returns the sample's path (`is_sample` tells), unless `sample_ok` is False.
    Raises ValueError for an unknown name, DownloadError where there is no file or the cache cannot be written.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(str(name), REGISTRY) or REGISTRY
        raise ValueError(f"no data is called {name!r}; did you mean {' or '.join(near)}?")
    entry, tried = REGISTRY[name], {}  # tried: place -> why it does not give the file
    for place in _places(entry):
        try:
            return _get(entry, place, progress)
        except Failed as reason:
            tried[place] = reason
        except OSError as error:
            raise DownloadError(
                f"{name}: the cache {data_dir()} cannot be used ({error.strerror or error}). Free some space or get "
                "the right to write there, or set LLM_DATA_DIR to another folder. What was downloaded so far is kept."
            ) from error
    if sample_ok and entry.sample and (SAMPLES / entry.sample).is_file():
        hosts = {urlsplit(place).hostname: reason for place, reason in tried.items() if isinstance(place, str)}
        why = "; ".join(f"{host}: {reason}" for host, reason in hosts.items()) or "offline, LLM_OFFLINE is set"
        print(f"{name}: not reachable ({why}), using the bundled sample {entry.sample} (written for this course)")
        return SAMPLES / entry.sample
    raise DownloadError(_how_by_hand(entry, tried))


def is_sample(path):
    """True if `path` is one of the course's bundled samples and not the real data."""
    return Path(path).resolve().is_relative_to(SAMPLES.resolve())


def data_dir():
    """The cache folder: `LLM_DATA_DIR`, or `data/` in the course folder. It need not exist yet."""
    return ROOT / Path(os.environ.get("LLM_DATA_DIR", "").strip() or "data").expanduser()


def _places(entry):
    """Where the file may be, in the order in which it is looked for: paths on this machine (Path), addresses (str)."""
    places = [data_dir() / entry.file]
    mirror = os.environ.get("LLM_MIRROR", "").strip()
    if mirror.startswith(("http://", "https://")):
        places.append(f"{mirror.rstrip('/')}/{quote(entry.file)}")
    elif mirror:
        folder = ROOT / Path(mirror).expanduser()
        if not folder.is_dir():
            print(f"LLM_MIRROR: there is no folder {folder}; going on without a mirror")
        places.append(folder / entry.file)
    if os.environ.get("LLM_OFFLINE", "").strip().lower() in ("", "0", "no", "false"):
        places.extend(entry.urls)
    return places


def _get(entry, place, progress):
    """The path of the right file from `place`, downloaded if that is an address. Raises Failed with the reason."""
    if isinstance(place, Path):
        if not place.is_file():
            raise Failed("is not there")
        problem = _problem(entry, place)
        if problem:
            print(f"{entry.name}: {place} {problem}; it is not used")
            raise Failed(problem)
        return place
    cached = data_dir() / entry.file
    download(place, cached, sha256=_expected(entry), size=entry.size, progress=progress)
    if _expected(entry) is None:
        Path(f"{cached}.sha256").write_text(sha256_of(cached), encoding="utf-8")
    return cached


def _how_by_hand(entry, tried):
    """The message of a DownloadError: what was tried, and how to get the file without this module."""
    size = f"{entry.size:,} bytes" if entry.size else "size not known"
    sha256 = f"sha256 {_expected(entry)}" if _expected(entry) else "checksum not known"
    lines = [f"{entry.name} could not be had:"]
    lines += [f"  {place}: {reason}" for place, reason in tried.items()]
    lines += [f"  {url}: not asked, LLM_OFFLINE is set" for url in entry.urls if url not in tried]
    lines += [f"By hand: get it ({size}, {sha256}) from one of these addresses; put it at {data_dir() / entry.file}."]
    if _expected(entry) != entry.sha256:
        lines += [f"That checksum was recorded in the cache, in {entry.file}.sha256; remove that if it is out of date."]
    lines += ["Or, where there is a network: python -m shared.data --all --to DIR; then here: LLM_MIRROR=DIR."]
    return "\n".join(lines)


_checked = {}  # (path, sha256, size, time of the last change) -> what is wrong; such a file is not read again


def _problem(entry, path):
    """Why `path` is not what `entry` promises, as the end of a sentence; None if it is."""
    try:
        stat = path.stat()
        version = (path, _expected(entry), stat.st_size, stat.st_mtime_ns)
        if version not in _checked:
            _checked[version] = mismatch(path, _expected(entry), entry.size)
        return _checked[version]
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _expected(entry):
    """The sha256 that the file must have: the registered one, else the recorded one, else None."""
    record = data_dir() / f"{entry.file}.sha256"
    if entry.sha256 is None and record.is_file():
        return record.read_text(encoding="utf-8").strip() or None
    return entry.sha256


def main(argv=None):
    """`python -m shared.data`; returns the exit status: 0, or 1 if any of the files could not be had."""
    parser = argparse.ArgumentParser(prog="python -m shared.data", description="Fetch and check the course's data.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
    parser.add_argument("--all", action="store_true", help="fetch everything")
    parser.add_argument("--list", action="store_true", help="show what there is and where it is now")
    parser.add_argument("--to", metavar="DIR", type=Path, help="also copy it to DIR, which can then be a mirror")
    args = parser.parse_args(argv)
    if args.list or not (args.names or args.all):
        _print_table()
        return 0
    results = [_bring(name, args.to) for name in (REGISTRY if args.all else args.names)]
    return 0 if all(results) else 1  # one failure does not stop the others


def _bring(name, folder):
    """Fetch the data called `name`, and copy it into `folder` unless that is None. Says how it went; False if badly."""
    try:
        path = fetch(name, sample_ok=False)
        if folder is not None:
            source, path = path, folder / REGISTRY[name].file
            if not path.is_file() or sha256_of(path) != sha256_of(source):
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, f"{path}.part")
                os.replace(f"{path}.part", path)
    except (ValueError, DownloadError) as error:
        print(error)
        return False
    except OSError as error:
        print(f"{name} cannot be copied to {folder}: {error}")
        return False
    print(f"{name}: {path}")
    return True


def _print_table():
    """Where `fetch` would find each file without asking the network: cache, mirror or sample; else absent."""
    line = "{:14} {:18} {:>12}  {:28} {:8} {}"
    print(line.format("name", "file", "bytes", "licence", "now", "what it is"))
    for entry in REGISTRY.values():
        now = "sample" if entry.sample and (SAMPLES / entry.sample).is_file() else "absent"
        for place in reversed(_places(entry)):
            if isinstance(place, Path) and place.is_file():
                now = "cache" if place == data_dir() / entry.file else "mirror"
                if _problem(entry, place):
                    now = "damaged"
        size = "?" if entry.size is None else f"{entry.size:,}"
        print(line.format(entry.name, entry.file, size, entry.licence, now, entry.about))


if __name__ == "__main__":
    raise SystemExit(main())
