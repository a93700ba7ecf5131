"""Download one file: go on where an earlier try was cut off, check it, and only then give it its name.

What has come so far is kept in NAME.part; NAME.lock, an empty file that stays, keeps other processes out meanwhile.
It does not use pooch, whose downloader cannot go on with a file that was cut off.
"""

import hashlib
import os
import socket
import sys
import time
from urllib.parse import urlsplit

import filelock
import requests
import urllib3
from tqdm import tqdm

CONNECT_TIMEOUT = 3  # seconds to reach one address of a host
READ_TIMEOUT = 15  # seconds without a byte
TRIES = 3  # requests in a row that bring nothing new, then a URL is given up
PAUSE = 0.5  # seconds before the second of them; twice as long before the third
FORGET = 60  # seconds for which a dead host is not asked again
BIG = 2**20  # bytes; larger files get a progress bar
dead_hosts = {}  # host -> (until when it is not asked again, why)


class Failed(Exception):
    """One URL does not give the file; the message says why."""


class _Cut(requests.RequestException):
    """One request did not give all of the file, the next one may; the message says why."""


def download(url, path, *, sha256=None, size=None, progress=True):
    """Bring the file at `url` to `path`.

    `sha256` (hex) and `size` (bytes) are what it must have; None means not known, and without a sha256 a download that
    was cut off starts over. Raises Failed when this URL does not give the file, OSError when the disk is at fault.
    """
    until, reason = dead_hosts.get(urlsplit(url).netloc, (0, ""))
    if time.monotonic() < until:
        raise Failed(reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with _only_one(path):
        if path.is_file() and mismatch(path, sha256, size) is None:
            return  # another process was faster
        _fill(url, part, sha256, size, progress)
        os.replace(part, path)


def mismatch(path, sha256, size):
    """What is wrong with the file `path`, as the end of a sentence, else None. What is not known cannot be wrong."""
    if size is not None and _bytes_in(path) != size:
        return f"has {_bytes_in(path):,} bytes instead of {size:,}"
    found = sha256_of(path) if sha256 else None
    return None if found == sha256 else f"has another checksum (sha256 {found} instead of {sha256})"


def sha256_of(path):
    """The SHA-256 checksum of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_in(path):
    return path.stat().st_size if path.is_file() else 0


def _only_one(path):
    """A context for one process at a time; the others wait. The lock ends with its process, however that ends."""
    lock = filelock.FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"{path.name}: another process is fetching it; waiting")
    return lock.acquire()


def _fill(url, part, sha256, size, progress):
    """Send requests until `part` is the file. Raises Failed after TRIES of them in a row that brought nothing new."""
    failures, most = 0, _bytes_in(part)
    while True:
        try:
            went_on = _request(url, part, sha256, size, progress)
            problem = mismatch(part, sha256, size)
            if problem is None:
                return
            part.unlink()
            if not went_on:
                raise Failed(f"sent a file that {problem}")
            raise _Cut("does not go on with the file that was begun")  # perhaps it was changed there: from the start
        except requests.RequestException as error:
            reason, dead = _explain(error)
            failures += 1
            if _bytes_in(part) > most:
                failures, most, dead = 1, _bytes_in(part), False
            if dead:
                dead_hosts[urlsplit(url).netloc] = (time.monotonic() + FORGET, reason)
            if dead or failures == TRIES:
                raise Failed(reason) from error
            time.sleep(PAUSE * failures)


def _request(url, part, sha256, size, progress):
    """One request for what `part` still lacks. True if it went on, False if the server sent the file from the start."""
    start = _bytes_in(part) if sha256 else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
        status, went_on = response.status_code, response.status_code == 206
        if status == 416:  # there is nothing behind what has come so far
            part.unlink(missing_ok=True)
            raise _Cut("does not go on with the file that was begun")
        if status in (408, 425, 429) or status >= 500:
            raise _Cut(f"HTTP {status} {response.reason}")
        if status not in (200, 206):
            raise Failed(f"HTTP {status} {response.reason}")
        bar = tqdm(desc=part.stem, total=size, initial=start if went_on else 0, unit="B", unit_scale=True, leave=False,
                   file=sys.stdout, disable=not progress or (size is not None and size < BIG))
        with bar, open(part, "ab" if went_on else "wb") as file:
            for block in response.iter_content(2**14):
                file.write(block)
                bar.update(len(block))
    if size is not None and _bytes_in(part) < size:
        raise _Cut(f"sent {_bytes_in(part):,} of {size:,} bytes")
    return went_on


def _explain(error):
    """What went wrong with a request, in words; and whether its host is dead: not to be asked again for a while."""
    if isinstance(error, _Cut):
        return str(error), False
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not accepted (a filter or a proxy in between?)", True
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy that is set (HTTP_PROXY, HTTPS_PROXY) gives no connection to it", True
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT} s", True
    inner = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(inner, urllib3.exceptions.NewConnectionError):
        if isinstance(inner.__context__, socket.gaierror):
            return "its name is not known here (no network?)", True
        return f"no connection ({inner.__context__.strerror})", True
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer within {READ_TIMEOUT} s", True
    return f"the connection breaks off ({type(error).__name__})", False
