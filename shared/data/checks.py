"""Is this the file that the registry promises? Its size, its checksum; where that is not known, what it holds.

A file is read only once: what was found is remembered, for large files in the cache too (FILE.checked). A checksum
that the registry does not know is that of the first download (FILE.sha256).
"""

import contextlib
import json
import re

from shared.data.places import data_dir
from shared.files import sha256_of, write_atomically

LARGE = 2**26  # bytes; that a larger file is right is remembered on disk too
_checked = {}  # (path, sha256, size, time of the last change) -> what is wrong; such a file is not read again


def mismatch(path, sha256, size):
    """What is wrong with the file `path`, as the end of a sentence, else None. What is not known cannot be wrong."""
    found = path.stat().st_size if path.is_file() else 0
    if size is not None and found != size:
        return f"has {found:,} bytes instead of {size:,}"
    found = sha256_of(path) if sha256 else None
    return None if found == sha256 else f"has another checksum (sha256 {found} instead of {sha256})"


def problem_of(form, path):
    """Why `path` is not what `form` promises, as the end of a sentence; None if it is."""
    try:
        stat = path.stat()
        version = (path, expected(form), stat.st_size, stat.st_mtime_ns)
        if version not in _checked and not _remembered(form, version):
            problem = mismatch(path, expected(form), form.size)
            _checked[version] = problem or (_unreadable(form, path) if form.sha256 is None else None)
            if _checked[version] is None and stat.st_size > LARGE:
                _remember(form, version)
        return _checked.get(version)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def expected(form):
    """The sha256 that the file must have: the registered one, else the recorded one, else None."""
    if form.sha256 is None and _record(form).is_file():
        found = _record(form).read_bytes().decode("ascii", errors="replace").strip()
        return found if re.fullmatch("[0-9a-f]{64}", found) else None  # a record that was cut off is none
    return form.sha256


def accept(form, path):
    """The same as `problem_of`, for a file that was just downloaded; records its checksum if none was known."""
    problem = problem_of(form, path)
    if problem is None and expected(form) is None:
        _write(_record(form), sha256_of(path))
    return problem


def drop_record(form):
    """Forget the recorded checksum of the file in the cache, if it was recorded from this bad file."""
    if form.sha256 is None and mismatch(data_dir() / form.file, expected(form), form.size) is None:
        _record(form).unlink(missing_ok=True)


def _record(form):
    return data_dir() / f"{form.file}.sha256"


def _write(path, text):
    with write_atomically(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")


def _note(form):
    return data_dir() / f"{form.file}.checked"


def _remembered(form, version):
    text = " ".join(map(str, version)).encode("utf-8", errors="surrogateescape")
    return _note(form).is_file() and _note(form).read_bytes() == text


def _remember(form, version):
    with contextlib.suppress(OSError):  # a cache that cannot be written: then it is read again
        _note(form).parent.mkdir(parents=True, exist_ok=True)
        _write(_note(form), " ".join(map(str, version)))


def _unreadable(form, path):
    """Why a file whose checksum is not known is not the right one, as the end of a sentence; None if it may be."""
    with open(path, "rb") as file:
        if re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype\s+)?html\b", file.read(1000), re.IGNORECASE):
            return "is a web page (HTML)"
    problem = _bad_header(path)
    if problem is None and form.reader:
        try:
            form.read(path)
        except ValueError as error:
            return str(error).removeprefix(f"{path} ")
    return problem


def _bad_header(path):
    """Why a .safetensors file is none or not whole, as the end of a sentence, else None; None for other files.

    It begins with the length of a header; the header is JSON that says where in the file each tensor ends.
    """
    if path.suffix != ".safetensors":
        return None
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        if length > size - 8:
            return "has no safetensors header"
        try:
            header = json.loads(file.read(length))
            end = 8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has no safetensors header"
    return None if end == size else f"has {size:,} bytes; its header speaks of {end:,}"
