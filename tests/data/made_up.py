"""Made-up data: a local HTTP server that does everything wrong, and data sets that ought to come from it."""

import hashlib
import os
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from shared.data import formats, places
from shared.data.registry import REGISTRY, Dataset
from tests.local_server import LocalServer

ROOT = Path(__file__).resolve().parents[2]
MIRROR = os.environ.get("LLM_MIRROR", "").strip()  # as the tests were called; each test starts without one
ENTRIES = dict(REGISTRY)  # the course's own
BODY = bytes(range(256)) * 1200  # 307,200 bytes, more than a block
OTHER = bytes(reversed(BODY))
CUT = 2**17
LINES = b'{"text": "one"}\n{"text": "two"}\n'


class Server(LocalServer):
    """`routes[path]` is a list of answers, one for each request; the last one stays. `log` holds (path, Range)."""

    def __init__(self):
        self.routes, self.log, self.counted = {}, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answers = outer.routes.get(self.path, [status(404)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                outer.log.append((self.path, self.headers.get("Range")))
                try:
                    outer.counted.append(answer(self) or 0)
                except OSError:  # the client has gone
                    outer.counted.append(None)

            do_POST = do_GET

            def log_message(self, *args):
                pass

        super().__init__(Handler)

    def serve(self, path, *answers):
        self.routes[path] = list(answers)
        return self.address + path

    @property
    def ranges(self):
        return [asked for _, asked in self.log]

    @property
    def sent(self):
        """The bytes of each answer (None: the client had gone), once all are out: a client may be done before that."""
        deadline = time.monotonic() + 5
        while len(self.counted) < len(self.log) and time.monotonic() < deadline:
            time.sleep(0.005)
        return list(self.counted)


def body(content, *, ranges=True, cut=None, length=None, hold=None):
    """A file; `cut`: break off after so many bytes, `length`: the lie, `hold`: an event to wait for at the cut."""

    def answer(handler):
        start, asked = 0, handler.headers.get("Range")
        if ranges and asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            handler.send_error(416)
            return 0
        rest = content[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(rest) if length is None else length))
        handler.end_headers()
        handler.wfile.write(rest[:cut])
        handler.wfile.flush()
        if hold:
            hold.wait(20)
        return len(rest[:cut])

    return answer


def status(code, after=None):
    """An error; `after`: when to come again."""

    def answer(handler):
        handler.send_response(code)
        if after is not None:
            handler.send_header("Retry-After", after)
        handler.end_headers()

    return answer


def encoded(content, encoding, cut=None):
    """A file with a Content-Encoding, which no Accept-Encoding asked for; a range is one of the encoded bytes."""

    def answer(handler):
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Encoding", encoding)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start:][:cut])
        return len(content[start:][:cut])

    return answer


def endless(block, pause=0, head=True, chunked=False, to=None):
    """What never ends: of a header, or of a body with or without chunks; at full speed or with a `pause`.

    `to`: it comes with a redirect to that path.
    """

    def answer(handler):
        if chunked:
            handler.protocol_version = "HTTP/1.1"
        if head:
            handler.send_response(302 if to else 200)
            handler.send_header("Location", to or "")
            handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
        sent = 0
        try:
            while sent < 2**30:
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
                time.sleep(pause) if pause else None
        except OSError:
            pass
        return sent

    return answer


def silent(seconds):
    return lambda handler: time.sleep(seconds)


def add(*urls, content=BODY, name="thing", file="sub/thing.bin", sample=None, sha256=True, size=True):
    """Register a file that ought to hold `content`."""
    REGISTRY[name] = Dataset(
        name=name,
        file=file,
        urls=urls,
        sha256=hashlib.sha256(content).hexdigest() if sha256 else None,
        size=len(content) if size else None,
        licence="none",
        about="made up",
        sample=sample,
    )
    if sample:
        (places.SAMPLES / sample).write_bytes(b"a sample")


def cached(file="sub/thing.bin"):
    return places.data_dir() / file


def left_over():
    """What lies in the cache, beside files that are complete, their recorded checksums and their locks."""
    names = [path.name for path in places.data_dir().rglob("*") if path.is_file()]
    return sorted(name for name in names if name not in ("thing.bin", "thing.bin.sha256", "thing.bin.lock"))


def put(tmp_path, file, content):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def words(path):
    return [record["text"] for record in formats.read_records(path)]
