"""What many modules do with a file: take its checksum, write it atomically, read text and JSON with clear errors."""

import contextlib
import hashlib
import json
import os
from pathlib import Path


def sha256_of(path):
    """The SHA-256 checksum of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def write_atomically(path):
    """Write a file atomically: at every moment `path` is a whole file, the old one or the new one.

        with write_atomically(path) as part:
            part.write_text(text, encoding="utf-8")

    `part` is NAME.part beside it. It takes the place of `path` (of a link too, which is not followed) at the end of the
    block, once it is on the disk, and is removed where the block raises. One process at a time may write a file.
    """
    part = Path(f"{path}.part")
    part.unlink(missing_ok=True)  # a link in its place would be followed
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_utf8(file):
    """The text of a file in UTF-8. Raises ValueError, naming the file, where it is none."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def read_json(file, values=object):
    """The object in a JSON file. Raises ValueError, naming the file, where it holds none, or other `values`."""
    text = read_utf8(file)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(found).__name__}, not an object {{...}}")
    for key, value in found.items():
        if not isinstance(value, values):
            raise ValueError(f"{file} is damaged: {key!r} is {value!r:.50}, not of type {values.__name__}")
    return found


def write_text(path, text):
    """Write a UTF-8 file atomically. Raises OSError, naming the file."""
    try:
        with write_atomically(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None
