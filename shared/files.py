"""Two things that many modules do with a file: take its checksum, and write it so that it is never half there."""

import contextlib
import hashlib
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
    Raises OSError, naming `path`, where it cannot be written.
    """
    part = Path(f"{path}.part")
    try:
        part.unlink(missing_ok=True)  # a link in its place would be followed
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, part, str(part)):
            raise  # of something else
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
