"""Everything the course asks of the network: download one file, or ask for a small answer in JSON.

A download goes on where an earlier try was cut off, is checked, and only then gets its name. What has come so far is
kept in NAME.part; NAME.lock, an empty file that stays, keeps other processes out meanwhile. It does not use pooch,
whose downloader cannot go on with a file that was cut off.
"""

import contextlib
import hashlib
import itertools
import os
import socket
import stat
import sys
import threading
import time
from concurrent.futures import Future
from urllib.parse import urlsplit

import filelock
import requests
import urllib3
from tqdm import tqdm

from shared.readers import parse_json

CONNECT_TIMEOUT = 3  # seconds to reach one address of a host
READ_TIMEOUT = 15  # seconds until an answer begins, and without a byte
TRIES = 3  # requests in a row that bring nothing new, then a URL is given up
PAUSE = 0.5  # seconds before the second of them; twice as long before the third, and so on
PATIENCE = 300  # seconds to wait, all in all, for a server that asks for a pause (429, 503)
WINDOW, SLOWEST = 30, 1000  # seconds; bytes a second: a download that is slower for so long is given up
FORGET = 60  # seconds for which a dead host is not asked again
BIG = 2**20  # bytes; larger files get a progress bar
LARGEST = 2**36  # bytes of a file whose size is not known
LARGEST_ANSWER = 2**24  # bytes of an answer in JSON
dead_hosts = {}  # host -> (until when it is not asked again, why)


class Failed(Exception):
    """One URL does not give the file; the message says why."""


class _Cut(requests.RequestException):
    """One request did not give all of the file, the next one may; the message says why."""


def download(url, path, *, sha256=None, size=None, limit=LARGEST, check=None, progress=True):
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


def ask_json(method, url, *, seconds=READ_TIMEOUT, **settings):
    """(what a server answers in JSON, the response with its headers). `settings` are those of `requests.request`.

    The answer must begin within `seconds` and then end within `seconds`. Raises Failed with the reason in words.
    """
    for attempt in range(TRIES):
        try:
            with open_url(method, url, seconds, **settings) as response:
                content, deadline = bytearray(), time.monotonic() + seconds
                for block in _blocks(response, unpack=True):
                    content += block
                    if len(content) > LARGEST_ANSWER or time.monotonic() > deadline:
                        raise Failed(f"no end of its answer within {seconds:g} s and {LARGEST_ANSWER:,} bytes")
            if response.status_code != 200:
                raise Failed(f"{_status(response)}: {content[:200].decode('utf-8', errors='replace')}")
            return parse_json(bytes(content)), response
        except requests.RequestException as error:
            reason, dead = _explain(error, seconds)
            if dead or method != "GET" or attempt == TRIES - 1:  # what is not a GET may have been done, and paid for
                raise Failed(reason) from error
            time.sleep(PAUSE * 2**attempt)
        except ValueError as error:
            raise Failed(f"its answer is no JSON ({error})") from None


def open_url(method, url, seconds, **settings):
    """The response to a request, to be used in a `with`; its body is not read yet. It must begin within `seconds`.

    A server that asks for a pause (429; 503 with Retry-After) gets it, PATIENCE seconds in all; one that fails (5xx) is
    asked TRIES times, if the request is a GET. What it says after that is returned, whatever its status. Raises
    requests.RequestException.
    """
    waited = 0
    for attempt in itertools.count():
        try:
            response = _in_time(seconds, requests.request, method, url, stream=True, timeout=(CONNECT_TIMEOUT, seconds),
                                hooks={"response": _leave_redirect}, **settings)  # fmt: skip
        except urllib3.exceptions.LocationParseError as error:
            raise requests.exceptions.InvalidURL(error) from None
        pause = _pause(response, attempt, method)
        if pause is None or pause > PATIENCE - waited:
            return response
        response.close()
        if pause > 2:
            print(f"{urlsplit(url).hostname}: {_status(response)}; asking again in {pause:.0f} s", flush=True)
        time.sleep(pause)
        waited += pause


def _leave_redirect(response, **_):
    """Nobody reads what comes with a redirect; requests would, to its end."""
    if response.is_redirect:
        response.close()


def _pause(response, attempt, method):
    """Seconds to wait before the request is sent again; None where that makes no sense."""
    status, pause = response.status_code, PAUSE * 2**attempt
    if status in (429, 503) and "Retry-After" in response.headers:
        with contextlib.suppress(ValueError, OverflowError, urllib3.exceptions.HTTPError):  # neither seconds nor a date
            return max(pause, urllib3.Retry().parse_retry_after(response.headers["Retry-After"]))
    fails = status in (408, 425, 503) or (status >= 500 and method == "GET")
    return pause if status == 429 or (fails and attempt < TRIES - 1) else None


def _status(response):
    """What the server said, such as `HTTP 429 Too Many Requests, Retry-After: 3600`."""
    after = response.headers.get("Retry-After")
    return f"HTTP {response.status_code} {response.reason}" + (f", Retry-After: {after[:40]}" if after else "")


def _in_time(seconds, function, *args, **kwargs):
    """What the function returns, or requests.ReadTimeout: no server can hold it up, not even with headers that drip."""
    future = Future()

    def call():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        future.add_done_callback(lambda late: late.exception() or late.result().close())
        raise requests.ReadTimeout from None


def _blocks(response, unpack):
    """The body of a response, as it comes; with `unpack`, without its Content-Encoding."""
    try:
        while block := response.raw.read1(2**16, decode_content=unpack):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


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
    """Send requests until `part` is the file. Raises Failed after TRIES of them in a row that brought nothing new."""
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
            reason, dead = _explain(error, READ_TIMEOUT)
            failures += 1
            if _come(part) > most:
                failures, most, dead = 1, _come(part), False
            if dead:
                dead_hosts[urlsplit(url).netloc] = (time.monotonic() + FORGET, reason)
            if dead or failures == TRIES:
                raise Failed(reason) from error
            time.sleep(PAUSE * failures)


def _request(url, part, sha256, size, limit, progress):
    """One request for what `part` still lacks. True if it went on, False if the server sent the file from the start."""
    start = _come(part) if sha256 else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with open_url("GET", url, READ_TIMEOUT, headers=headers) as response:
        if response.status_code == 416 and start:  # there is nothing behind what has come so far
            return True
        if response.status_code not in (200, 206):
            if response.status_code == 429:
                dead_hosts[urlsplit(url).netloc] = (time.monotonic() + FORGET, _status(response))
            raise Failed(_status(response))
        encoded, went_on = _encoded(response, part.stem), start > 0 and response.status_code == 206
        if not went_on or encoded:  # what is encoded on its way has its own count of bytes
            part.unlink(missing_ok=True)
            start = 0
        if went_on and encoded:
            raise _Cut("does not go on with the file that was begun")
        bar = tqdm(desc=part.stem, total=size, initial=start, unit="B", unit_scale=True, leave=False, file=sys.stdout,
                   disable=not progress or (size is not None and size < BIG))  # fmt: skip
        with bar, open(part, "ab" if went_on else "xb") as file:  # x: a link that comes in between is not followed
            for block in _not_too_slow(_blocks(response, unpack=encoded)):
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


def _explain(error, seconds):
    """What went wrong with a request, in words; and whether its host is dead: not to be asked again for a while."""
    if isinstance(error, _Cut):
        return str(error), False
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not accepted (a filter or a proxy in between?)", True
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy that is set (HTTP_PROXY, HTTPS_PROXY) gives no connection to it", True
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT} s", True
    if isinstance(error, (ValueError, requests.TooManyRedirects)):
        return f"this address cannot be asked ({error})", True
    if error.args and isinstance(error.args[0], urllib3.exceptions.DecodeError):
        return "its encoding cannot be undone", False
    inner = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(inner, urllib3.exceptions.NewConnectionError):
        if isinstance(inner.__context__, socket.gaierror):
            return "its name is not known here (no network?)", True
        return f"no connection ({inner.__context__.strerror})", True
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer within {seconds:g} s", True
    return f"the connection breaks off ({type(error).__name__})", False
