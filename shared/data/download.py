"""One file from one URL. A download goes on where an earlier try was cut off, is checked, and only then gets its name.

What has come so far is kept in NAME.part; NAME.lock, an empty file that stays, keeps other processes out meanwhile. It
does not use pooch, whose downloader cannot go on with a file that was cut off.
"""

import contextlib
import os
import stat
import sys
import time
from urllib.parse import urlsplit

import filelock
import requests
import urllib3
from tqdm import tqdm

from shared.data import network
from shared.data.checks import mismatch
from shared.data.network import Failed, blocks_of, explain, open_url, status_of

WINDOW, SLOWEST = 30, 1000  # seconds; bytes a second: a download that is slower for so long is given up
FORGET = 60  # seconds for which a dead host is not asked again
BIG = 2**20  # bytes; larger files get a progress bar
dead_hosts = {}  # host -> (until when it is not asked again, why)


class _Cut(requests.RequestException):
    """One request did not give all of the file, the next one may; the message says why."""


def download(url, path, *, sha256, size, limit, check, progress):
    """Bring the file at `url` to `path`.

    `sha256` (hex) and `size` (bytes) are what it must have; None means not known: without a sha256 a download that was
    cut off starts over, without a size no more than `limit` bytes are taken. `check` says what else is wrong with the
    file, as `mismatch` does. Links at `path` and beside it are replaced, never followed. Raises Failed when this URL
    does not give the file, OSError when the disk is at fault.
    """
    until, reason = dead_hosts.get(urlsplit(url).netloc, (0, ""))
    if time.monotonic() < until:
        raise Failed(reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _only_one(path):
        if path.is_file() and mismatch(path, sha256, size) is None and not (check and check(path)):
            return  # another process was faster
        _fill(url, part, sha256, size, limit if size is None else size, progress)
        os.replace(part, path)
        problem = check and check(path)
        if problem:
            path.unlink()
            raise Failed(f"sent a file that {problem}")


def _only_one(path):
    """A context for one process at a time; the others wait. The lock ends with its process, however that ends."""
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink():
        lock.unlink()
    lock = filelock.FileLock(lock)
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"{path.name}: another process is fetching it; waiting")
    return lock.acquire()


def _come(part):
    """How many bytes of a file have come. What is no plain file of its own, such as a link, is removed: not ours."""
    with contextlib.suppress(FileNotFoundError):
        found = part.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return found.st_size
        part.unlink()
    return 0


def _fill(url, part, sha256, size, limit, progress):
    """Send requests until `part` is the file. Raises Failed after `TRIES` of them in a row that brought nothing new."""
    failures, most = 0, _come(part)
    while True:
        try:
            went_on = _request(url, part, sha256, size, limit, progress)
            problem = mismatch(part, sha256, size)
            if problem is None:
                return
            part.unlink()
            if not went_on:
                raise Failed(f"sent a file that {problem}")
            raise _Cut("does not go on with the file that was begun")  # perhaps it was changed there: from the start
        except requests.RequestException as error:
            cut = isinstance(error, _Cut)
            reason, dead = (str(error), False) if cut else explain(error, network.READ_TIMEOUT)
            failures += 1
            if _come(part) > most:
                failures, most, dead = 1, _come(part), False
            if dead:
                dead_hosts[urlsplit(url).netloc] = (time.monotonic() + FORGET, reason)
            if dead or failures == network.TRIES:
                raise Failed(reason) from error
            time.sleep(network.PAUSE * failures)


def _request(url, part, sha256, size, limit, progress):
    """One request for what `part` still lacks. True if it went on, False if the server sent the file from the start."""
    start = _come(part) if sha256 else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with open_url("GET", url, network.READ_TIMEOUT, headers=headers) as response:
        if response.status_code == 416 and start:  # there is nothing behind what has come so far
            return True
        if response.status_code not in (200, 206):
            if response.status_code == 429:
                dead_hosts[urlsplit(url).netloc] = (time.monotonic() + FORGET, status_of(response))
            raise Failed(status_of(response))
        encoded, went_on = _encoded(response, part.stem), start > 0 and response.status_code == 206
        if not went_on or encoded:  # what is encoded on its way has its own count of bytes
            part.unlink(missing_ok=True)
            start = 0
        if went_on and encoded:
            raise _Cut("does not go on with the file that was begun")
        bar = tqdm(desc=part.stem, total=size, initial=start, unit="B", unit_scale=True, leave=False, file=sys.stdout,
                   disable=not progress or (size is not None and size < BIG))  # fmt: skip
        with bar, open(part, "ab" if went_on else "xb") as file:  # x: a link that comes in between is not followed
            for block in _not_too_slow(blocks_of(response, unpack=encoded)):
                start += len(block)
                if start > limit:
                    break
                file.write(block)
                bar.update(len(block))
    if start > limit:
        part.unlink()
        if went_on:
            raise _Cut("does not go on with the file that was begun")
        raise Failed(f"sent more than the {limit:,} bytes that it may have")
    if size is not None and start < size:
        raise _Cut(f"sent {start:,} of {size:,} bytes")
    return went_on


def _encoded(response, name):
    """True if a server encodes what it sends, though asked not to. The label may also mean the packed file itself."""
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding == "identity" or ("gzip" in encoding and name.endswith((".gz", ".tgz"))):
        return False
    if encoding == "zstd" and name.endswith(".zst"):
        return False
    if encoding not in urllib3.HTTPResponse.CONTENT_DECODERS:
        raise Failed(f"sent it in an encoding that is not known here ({encoding[:40]})")
    return True


def _not_too_slow(blocks):
    """The blocks as they come, until fewer than SLOWEST bytes a second have come for a WINDOW of time."""
    begin, came = time.monotonic(), 0
    for block in blocks:
        yield block
        came += len(block)
        if time.monotonic() > begin + WINDOW:
            if came < WINDOW * SLOWEST:
                raise Failed(f"sent {came:,} bytes in {WINDOW:g} s, which is too slow")
            begin, came = time.monotonic(), 0
