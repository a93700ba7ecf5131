"""Every file the lessons read: found in the cache, in a mirror or at its official address, and checked before use.

    path = data.fetch("the_verdict")              # a local path; downloads at most once
    python -m shared.data --list                  # what there is, and where each file is now
    python -m shared.data --all --to /media/usb   # make a mirror, such as a workshop's USB stick

Environment (relative paths count from the course folder):
LLM_DATA_DIR  the cache; default `data/` in the course folder
LLM_MIRROR    a folder or an http(s) address with the same relative paths, asked before the official addresses
LLM_OFFLINE   1: never ask the official addresses (a mirror that is set is still asked)

Below it are requests, tqdm, filelock and hashlib. Not pooch: its downloader cannot go on with a file that was cut off.
"""

import argparse
import difflib
import hashlib
import json
import os
import queue
import shutil
import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import filelock
import requests
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "shared" / "samples"
CONNECT_TIMEOUT = 5  # seconds to reach a host
READ_TIMEOUT = 15  # seconds without a byte
TRIES = 3  # requests in a row that bring nothing new, then an address is given up
PAUSE = 0.5  # seconds before the second of them; twice as long before the third
FORGET = 60  # seconds for which a dead host is not asked again
BIG = 2**20  # bytes; larger files get a progress bar


@dataclass(frozen=True)
class Dataset:
    """One file: where it comes from, how it is recognised, under which licence it stands.

    `file` is its path in the cache and in a mirror, `sample` the path of its stand-in under `shared/samples`.
    `size` is in bytes, exact, or None. A `sha256` of None means that nobody can know it beforehand: that of the first
    file seen is recorded in `checksums.json` in the cache, and later ones must equal it.
    """

    name: str
    file: str
    urls: tuple[str, ...]
    sha256: str | None
    size: int | None
    licence: str
    about: str
    sample: str | None = None


_OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_HUB = "https://huggingface.co/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e"
_RASBT = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"

_DATASETS = [
    Dataset(
        name="the_verdict",
        file="the-verdict.txt",
        urls=(f"{_RASBT}/ch02/01_main-chapter-code/the-verdict.txt",),
        sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        size=20_479,
        licence="public domain",
        about="Edith Wharton, The Verdict (1908), a short story",
        sample="the-lamp-room.txt",
    ),
    Dataset(
        name="gpt2_vocab",
        file="bpe/vocab.bpe",
        urls=(f"{_OPENAI}/vocab.bpe", f"{_HUB}/merges.txt"),
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        size=456_318,
        licence="Modified MIT (OpenAI gpt-2)",
        about="GPT-2's byte-pair encoding: the merges",
        sample="bpe/vocab.bpe",
    ),
    Dataset(
        name="gpt2_encoder",
        file="bpe/encoder.json",
        urls=(f"{_OPENAI}/encoder.json", f"{_HUB}/vocab.json"),
        sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        size=1_042_301,
        licence="Modified MIT (OpenAI gpt-2)",
        about="GPT-2's byte-pair encoding: token to id",
        sample="bpe/encoder.json",
    ),
]
REGISTRY = {entry.name: entry for entry in _DATASETS}


class DownloadError(OSError):
    """A file could not be had. The message names each address tried, with the reason, and the way out by hand."""


class _Failed(Exception):
    """One address does not give the file; the message says why."""


class _Cut(requests.RequestException):
    """One request did not give all of the file, the next one may; the message says why."""


# --- finding a file --------------------------------------------------------------------------------------------------


def fetch(name, *, sample_ok=True, progress=True):
    """The local path of the data called `name`, brought here first if need be.

    Looks in the cache, in the mirror, at the official addresses in turn. Where none of them gives it and there is a
    bundled sample, says so in one line and returns the sample's path (`is_sample` tells), unless `sample_ok` is False.
    Raises ValueError for an unknown name, DownloadError where there is no file or the cache cannot be written.
    """
    entry, tried = _entry(name), {}  # tried: address -> why it does not give the file
    path, mirror = data_dir() / entry.file, _mirror()
    try:
        found = _from_cache(entry, path) or _from_folder(entry, mirror, tried)
        if found:
            return found
        for url in _addresses(entry, mirror):
            try:
                _download(entry, url, path, progress)
                return path
            except _Failed as reason:
                tried[url] = str(reason)
    except OSError as error:
        raise DownloadError(
            f"{name}: the cache {data_dir()} cannot be used ({error.strerror or error}). Free some space or get the "
            "right to write there, or set LLM_DATA_DIR to another folder. What was downloaded so far is kept."
        ) from error
    sample = SAMPLES / entry.sample if entry.sample else None
    if sample_ok and sample and sample.is_file():
        hosts = {urlsplit(where).hostname or where: reason for where, reason in tried.items()}
        why = "; ".join(f"{host}: {reason}" for host, reason in hosts.items()) or "offline, LLM_OFFLINE is set"
        print(f"{name}: not reachable ({why}), using the bundled sample {entry.sample} (written for this course)")
        return sample
    raise DownloadError(_by_hand(entry, path, tried))


def is_sample(path):
    """True if `path` is one of the course's bundled samples and not the real data."""
    return Path(path).resolve().is_relative_to(SAMPLES.resolve())


def data_dir():
    """The cache folder: `LLM_DATA_DIR`, or `data/` in the course folder. It need not exist yet."""
    return ROOT / Path(os.environ.get("LLM_DATA_DIR", "").strip() or "data").expanduser()


def _entry(name):
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(str(name), REGISTRY)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(REGISTRY))}"
    raise ValueError(f"no data is called {name!r}; {hint}")


def _mirror():
    """LLM_MIRROR as an address (str, no slash at the end) or a folder (Path), else None."""
    value = os.environ.get("LLM_MIRROR", "").strip()
    if not value or value.startswith(("http://", "https://")):
        return value.rstrip("/") or None
    folder = ROOT / Path(value).expanduser()
    if folder.is_dir():
        return folder
    print(f"LLM_MIRROR: there is no folder {folder}; going on without a mirror")
    return None


def _addresses(entry, mirror):
    offline = os.environ.get("LLM_OFFLINE", "").strip().lower() not in ("", "0", "no", "false")
    return [f"{mirror}/{quote(entry.file)}"] * isinstance(mirror, str) + list(entry.urls) * (not offline)


def _from_cache(entry, path):
    """`path` if it holds the right bytes, else None; a file with wrong bytes is set aside."""
    problem = _problem(entry, path) if path.is_file() else "is not there"
    if problem is None:
        return path
    if path.is_file():
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(path, f"{path}.wrong")
        print(f"{entry.name}: {path} {problem}; it is set aside as {path.name}.wrong")
    return None


def _from_folder(entry, mirror, tried):
    """The file in the mirror folder, used where it lies; None if it is not there or not the right one."""
    path = mirror / entry.file if isinstance(mirror, Path) else None
    if path is None or not path.is_file():
        return None
    problem = _problem(entry, path)
    if problem is None:
        return path
    tried[str(path)] = problem
    print(f"{entry.name}: {path} {problem}; it is not used")
    return None


def _by_hand(entry, path, tried):
    size = f"{entry.size:,} bytes" if entry.size else "size not known"
    sha256 = f"sha256 {_expected(entry)}" if _expected(entry) else "checksum not known"
    lines = [f"{entry.name} could not be had:"]
    lines += [f"  {where}: {reason}" for where, reason in tried.items()]
    lines += [f"  {url}: not asked, LLM_OFFLINE is set" for url in entry.urls if url not in tried]
    lines += [f"By hand: get {entry.file} ({size}, {sha256}) from one of these addresses and put it at {path}."]
    if _expected(entry) and not entry.sha256:
        lines += [f"That checksum was recorded in {_RECORDS} beside it; remove it there if the file was renewed."]
    lines += ["Or, where there is a network: python -m shared.data --all --to DIR; then here: LLM_MIRROR=DIR."]
    return "\n".join(lines)


# --- checksums -------------------------------------------------------------------------------------------------------

_RECORDS = "checksums.json"  # in the cache; file -> {sha256, path, size, mtime_ns} of the last one found right


def _problem(entry, path):
    """Why `path` is not what `entry` promises, as the end of a sentence; None if it is.

    A file that was found right before and has kept its place, size and time is not read again.
    """
    try:
        expected = _expected(entry)
        if expected and _records().get(entry.file) == _stamp(path, expected):
            return None
        problem, found = _compare(entry, path)
        if problem is None:
            _record(entry, path, found)
        return problem
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _compare(entry, path):
    """What is wrong with the bytes of `path`, or None; and their sha256, or None if the size says enough."""
    size = path.stat().st_size
    if entry.size not in (None, size):
        return f"has {size:,} bytes instead of {entry.size:,}", None
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = _expected(entry) or found
    return None if found == expected else f"has another checksum (sha256 {found} instead of {expected})", found


def _expected(entry):
    return entry.sha256 or _records().get(entry.file, {}).get("sha256")


def _stamp(path, sha256):
    stat = path.stat()
    return {"sha256": sha256, "path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _records():
    try:
        records = json.loads((data_dir() / _RECORDS).read_text(encoding="utf-8"))
        return {file: record for file, record in records.items() if isinstance(record, dict)}
    except (OSError, ValueError, AttributeError):
        return {}


def _record(entry, path, sha256):
    """Note what was found right. In a cache that cannot be written nothing is noted, and nothing is wrong."""
    aside = data_dir() / f"{_RECORDS}.{os.getpid()}.{threading.get_ident()}"
    with suppress(OSError):
        data_dir().mkdir(parents=True, exist_ok=True)
        records = _records() | {entry.file: _stamp(path, sha256)}
        aside.write_text(json.dumps(records, indent=1), encoding="utf-8")
        os.replace(aside, data_dir() / _RECORDS)
    with suppress(OSError):
        aside.unlink()


# --- downloading -----------------------------------------------------------------------------------------------------


def _download(entry, url, path, progress):
    """Bring `url` to `path`, going on from what an earlier try left in `path` + ".part".

    Raises _Failed with the reason when this address does not give the file, OSError when the disk is at fault.
    """
    _reach(url)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(entry, path):
        if path.is_file() and _problem(entry, path) is None:
            return  # another process was faster
        pieced = _fill(entry, url, part, progress)
        problem, found = _compare(entry, part)
        if problem and pieced:  # perhaps pieces of two different files: once more, from the start
            part.unlink()
            _fill(entry, url, part, progress)
            problem, found = _compare(entry, part)
        _etag_of(part).unlink(missing_ok=True)
        if problem:
            part.unlink()
            raise _Failed(f"sent a file that {problem}")
        os.replace(part, path)
        _record(entry, path, found)


def _fill(entry, url, part, progress):
    """Send requests until `part` is complete. Returns False if all its bytes came with one request."""
    failures, most, pieced = 0, _size(part), True
    while entry.size is None or _size(part) < entry.size:
        try:
            pieced = _request(entry, url, part, progress)
            if entry.size is None:
                break
        except requests.RequestException as error:
            pieced = True
            failures = 1 if _size(part) > most else failures + 1
            most = max(most, _size(part))
            if failures == TRIES or isinstance(error, requests.exceptions.SSLError):
                raise _Failed(_reason(error, url)) from error
            time.sleep(PAUSE * failures)
    return pieced


def _request(entry, url, part, progress):
    """One request for what `part` still lacks. Returns True if it added to the bytes of an earlier one.

    Where the sha256 is known any server may go on, as the whole is checked in the end; where it is not, only one that
    still has the file under the same ETag (RFC 9110, section 13.1.5, If-Range).
    """
    start, etag, headers = _size(part), _etag_of(part), {"Accept-Encoding": "identity"}
    begun_as = etag.read_text(encoding="utf-8") if etag.is_file() else ""
    if start and (entry.sha256 or begun_as):
        headers["Range"] = f"bytes={start}-"
        headers |= {} if entry.sha256 else {"If-Range": begun_as}
    with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
        status, more = response.status_code, response.status_code == 206
        if status == 416 or more and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)  # the file there is not the one that was begun
            raise _Cut("does not go on with a file that was begun")
        if status in (408, 425, 429) or status >= 500:
            raise _Cut(f"HTTP {status} {response.reason}")
        if status not in (200, 206):
            raise _Failed(f"HTTP {status} {response.reason}")
        with open(part, "ab" if more else "wb") as file, _bar(entry, response, start * more, progress) as bar:
            if not more and not entry.sha256:
                tag = response.headers.get("ETag", "")
                etag.write_text("" if tag.startswith("W/") else tag, encoding="utf-8")
            for block in response.iter_content(2**14):
                file.write(block)
                bar.update(len(block))
                if entry.size is not None and file.tell() > entry.size:
                    break  # too long: the check of the whole will say so
    if entry.size is not None and _size(part) < entry.size:
        raise _Cut(f"sent {_size(part):,} of {entry.size:,} bytes")
    return more


def _bar(entry, response, start, progress):
    length = response.headers.get("Content-Length", "")
    total = entry.size or (start + int(length) if length.isdigit() else None)
    hidden = not progress or (total is not None and total < BIG)
    look = {"unit": "B", "unit_scale": True, "leave": False, "file": sys.stdout}
    return tqdm(desc=entry.name, total=total, initial=start, disable=hidden, **look)


def _size(path):
    return path.stat().st_size if path.is_file() else 0


def _etag_of(part):
    return part.with_name(part.name + ".etag")


@contextmanager
def _only_one(entry, path):
    """One process at a time in here; the others wait. The lock ends with its process, however that ends."""
    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"{entry.name}: another process is fetching it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
    with suppress(OSError):
        os.unlink(lock.lock_file)  # the file is complete now: whoever still waits will see that


# --- hosts -----------------------------------------------------------------------------------------------------------

_DEAD = {}  # host -> (until when it is not asked again, why)


def _reach(url):
    """Raise _Failed unless the host of `url`, or the proxy before it, takes a connection within CONNECT_TIMEOUT.

    requests alone would wait that long for each of a host's addresses, and without a limit for its name.
    """
    host = urlsplit(url).netloc
    until, why = _DEAD.get(host, (0, ""))
    if time.monotonic() < until:
        raise _Failed(why)
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    via = urlsplit(url if not proxy else proxy if "://" in proxy else f"http://{proxy}")
    answers = queue.Queue()
    for family in (socket.AF_INET, socket.AF_INET6):
        threading.Thread(target=_connect, args=(via, family, answers), daemon=True).start()
    deadline, best = time.monotonic() + CONNECT_TIMEOUT, (3, "")
    for _ in range(2):
        try:
            best = min(best, answers.get(timeout=max(0, deadline - time.monotonic())))
        except queue.Empty:
            best = min(best, (1, f"no connection within {CONNECT_TIMEOUT} s"))
        if best == (0, ""):
            return
    raise _Failed(_dead(url, f"the proxy {via.hostname}: {best[1]}" if proxy else best[1]))


def _connect(via, family, answers):
    """Put (0, "") into the queue `answers` once connected to the host in `via`, else (rank of the reason, reason)."""
    try:
        port = via.port or {"https": 443, "http": 80}.get(via.scheme, 1080)
        family, kind, protocol, _, address = socket.getaddrinfo(via.hostname, port, family, socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(CONNECT_TIMEOUT)
            connection.connect(address)
        answers.put((0, ""))
    except socket.gaierror:
        answers.put((2, "its name is not known here (no network?)"))
    except Exception as error:  # whatever it was, the host was not reached
        answers.put((1, f"no connection ({getattr(error, 'strerror', None) or error})"))


def _dead(url, why):
    _DEAD[urlsplit(url).netloc] = time.monotonic() + FORGET, why
    return why


def _reason(error, url):
    """What went wrong with the last request, in words; a host that fell silent counts as dead."""
    if isinstance(error, _Cut):
        return str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return _dead(url, "its TLS certificate is not accepted (a filter or a proxy in between?)")
    if isinstance(error, requests.exceptions.ProxyError):
        return _dead(url, "the proxy gives no connection to it")
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return _dead(url, f"no answer within {READ_TIMEOUT} s")
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection breaks off"
    return f"{type(error).__name__}: {error}"


# --- command line ----------------------------------------------------------------------------------------------------


def main(argv=None):
    """`python -m shared.data`; returns the exit status: 0, or 1 if any of the files could not be had."""
    parser = argparse.ArgumentParser(prog="python -m shared.data", description="Fetch and check the course's data.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch")
    parser.add_argument("--all", action="store_true", help="fetch everything")
    parser.add_argument("--list", action="store_true", help="show what there is and where it is now")
    parser.add_argument("--to", metavar="DIR", type=Path, help="also copy it to DIR, which can then be a mirror")
    args = parser.parse_args(argv)
    names = list(REGISTRY) if args.all or args.list and not args.names else args.names
    try:
        entries = [_entry(name) for name in names]
    except ValueError as error:
        parser.error(str(error))
    if not entries:
        parser.error("give one or more NAMEs, --all or --list")
    if args.list:
        _print_table(entries)
        return 0
    brought = [_bring(entry, args.to) for entry in entries]  # one failure does not stop the others
    return 0 if all(brought) else 1


def _bring(entry, folder):
    """Fetch `entry`, and copy it into `folder` if that is not None. Prints how it went; False if badly."""
    try:
        path = fetch(entry.name, sample_ok=False)
        if folder is not None:
            path = _copy(entry, path, folder / entry.file)
    except OSError as error:
        print(error if isinstance(error, DownloadError) else f"{entry.name} cannot be copied to {folder}: {error}")
        return False
    print(f"{entry.name}: {path}")
    return True


def _copy(entry, path, target):
    """Copy the checked file `path` to `target`, unless it is there already; the copy is read back and checked."""
    if target.is_file() and _compare(entry, target)[0] is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(shutil.copyfile(path, target.with_name(target.name + ".part")))
    problem = _compare(entry, part)[0]
    if problem:
        raise OSError(f"the copy {problem}")
    os.replace(part, target)
    return target


def _print_table(entries):
    mirror, rows = _mirror(), [("name", "file", "bytes", "licence", "now", "what it is")]
    for entry in entries:
        size = f"{entry.size:,}" if entry.size else "?"
        rows.append((entry.name, entry.file, size, entry.licence, _whereabouts(entry, mirror), entry.about))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _whereabouts(entry, mirror):
    """Where `fetch` would find it without asking the network: cache, mirror or sample; else absent."""
    path = data_dir() / entry.file
    if path.is_file():
        return "cache" if _problem(entry, path) is None else "damaged"
    if isinstance(mirror, Path) and (mirror / entry.file).is_file():
        return "mirror" if _problem(entry, mirror / entry.file) is None else "damaged"
    return "sample" if entry.sample and (SAMPLES / entry.sample).is_file() else "absent"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; what was downloaded is kept, and the next call goes on from there")
