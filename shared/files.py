"""What many modules do with files: checksums, atomic writing of one or several, reading with clear errors."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

_HELD = {}  # the locks of the tables that this program writes
_ASIDE = ".partial-export-"  # how the folder begins in which several files are written aside


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


def command_line(main):
    """Run the `main` of a command and end the program: quietly where nobody reads on, as after `| head`."""
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more, and complains
        status = 1
    raise SystemExit(status)


def continue_table(out, conditions, rows="runs"):
    """The rows of the table in the JSON file `out`, to go on with; none where there is no file yet.

    Raises ValueError, before anything is computed, where no file can be written there, where another program writes it,
    or where it holds something else or was made under other `conditions`, the keys and values that it must have:
    results are never written over. The file is this program's until it ends.
    """
    import filelock  # not above: the set-up reads this module before anything is installed

    out, conditions = Path(out), json.loads(json.dumps(conditions))  # as they come back from a file
    if out.exists() and not out.is_file() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"{out} is no file that can be written: name one in a folder that is there, with --out")
    name = f"table-{hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:16]}.lock"
    lock = _HELD.setdefault(name, filelock.FileLock(Path(tempfile.gettempdir()) / name))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(f"another program is writing {out}: wait for it, or name another file with --out") from None
    if not out.exists():
        return []
    table = read_json(out)
    if not isinstance(table.get(rows), list) or any(table.get(key) != value for key, value in conditions.items()):
        found = f"{out} is another table, or was made with another model, other data or settings"
        raise ValueError(f"{found}: name another file with --out, or delete it")
    return table[rows]


def write_table(out, table, rows="runs"):
    """Write a table as JSON, each of its `rows` on a line of its own, atomically: after every row the file is whole."""
    head = {key: value for key, value in table.items() if key != rows} | {rows: []}  # the rows come last
    begun = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("]\n}")
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in table[rows])
    with write_atomically(out) as part:
        part.write_text(f"{begun}\n{lines}\n ]\n}}\n", encoding="utf-8")


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


@contextlib.contextmanager
def write_together(folder):
    """Write several files into `folder` atomically, each of them once all are whole.

        with write_together(folder) as aside:
            (aside / "config.json").write_text(text, encoding="utf-8")

    `aside` is a new folder in there, whose files take their places at the end. Raises OSError, saying what is new.
    """
    folder, moved = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as aside:
            yield Path(aside)
            for file in Path(aside).iterdir():
                if (folder / file.name).is_dir():
                    raise IsADirectoryError(f"{file.name} is a folder there")
                with open(file, "rb+") as whole:
                    os.fsync(whole.fileno())  # here, so that no time passes between the first move and the last
            for file in sorted(Path(aside).iterdir()):
                os.replace(file, folder / file.name)
                moved.append(file.name)
        for left in folder.glob(f"{_ASIDE}*"):  # by a run that was killed, unless somebody writes it now
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > 3600:
                    shutil.rmtree(left)  # not what a link leads to
    except OSError as error:
        state = f"only {', '.join(moved)} is new there" if moved else "what was there is untouched"
        raise OSError(f"{folder} could not be written ({error}); {state}") from None
