"""`shared.data` against a local HTTP server that does everything wrong, and with no server."""

import email.utils
import errno
import gzip
import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import urllib3

from shared import data
from shared.data import checks, download, formats, network, places, readers
from shared.data.__main__ import main
from shared.data.registry import REGISTRY, Dataset, Form
from tests.local_server import LocalServer, go_direct

ROOT = Path(__file__).resolve().parents[1]
MIRROR = os.environ.get("LLM_MIRROR", "").strip()  # as the tests were called; each test starts without one
BODY = bytes(range(256)) * 1200  # 307,200 bytes, more than a block
OTHER = bytes(reversed(BODY))
ENTRIES = dict(REGISTRY)  # the course's own
CUT = 2**17


# --- the server ------------------------------------------------------------------------------------------------------


class Server(LocalServer):
    """`routes[path]` is a list of answers, one for each request; the last one stays. `log` holds (path, Range)."""

    def __init__(self):
        self.routes, self.log, self.sent = {}, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                answers = outer.routes.get(self.path, [status(404)])
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                outer.log.append((self.path, self.headers.get("Range")))
                try:
                    outer.sent.append(answer(self) or 0)
                except OSError:  # the client has gone
                    outer.sent.append(None)

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


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def course(tmp_path, monkeypatch):
    """An empty cache, no mirror, no proxy, an empty registry, a folder for samples, and little patience."""
    for name in ("LLM_MIRROR", "LLM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    go_direct(monkeypatch)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(places, "SAMPLES", tmp_path / "samples")
    monkeypatch.setattr(network, "PAUSE", 0.01)
    monkeypatch.setattr(download, "dead_hosts", {})
    (tmp_path / "samples").mkdir()
    REGISTRY.clear()
    yield
    REGISTRY.clear()
    REGISTRY.update(ENTRIES)


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


# --- the network at its best and at its worst ------------------------------------------------------------------------


def test_download_once_then_from_the_cache(server, monkeypatch):
    add(server.serve("/a", body(BODY)))
    path = data.fetch("thing")
    assert path == cached() and path.read_bytes() == BODY
    assert data.fetch("thing") == path
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: pytest.fail("a known file was read again"))
    assert data.fetch("thing") == path
    assert len(server.log) == 1 and left_over() == [] and not places.is_sample(path)


def test_cut_download_goes_on_where_it_stopped(server):
    add(server.serve("/a", body(BODY, cut=CUT), body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={CUT}-"]
    assert server.sent == [CUT, len(BODY) - CUT]
    assert left_over() == []


def test_cut_download_goes_on_in_a_later_call(server, monkeypatch):
    monkeypatch.setattr(network, "TRIES", 1)
    add(server.serve("/a", body(BODY, cut=CUT), body(BODY)))
    with pytest.raises(data.DownloadError, match="breaks off"):
        data.fetch("thing")
    assert left_over() == ["thing.bin.part"]
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={CUT}-"] and left_over() == []


def test_many_cuts_that_each_bring_something_are_no_failure(server):
    add(server.serve("/a", *[body(BODY, cut=70_000)] * 4, body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert len(server.log) == 5 > network.TRIES


def test_another_address_goes_on_with_the_same_file(server, monkeypatch):
    monkeypatch.setattr(network, "TRIES", 1)
    add(server.serve("/a", body(BODY, cut=CUT)), server.serve("/b", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.log == [("/a", None), ("/b", f"bytes={CUT}-")]


def test_server_without_ranges_starts_over(server):
    add(server.serve("/a", body(BODY, ranges=False, cut=CUT), body(BODY, ranges=False)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={CUT}-"]


def test_server_without_ranges_that_always_cuts_is_given_up(server):
    add(server.serve("/a", body(BODY, ranges=False, cut=CUT)))
    with pytest.raises(data.DownloadError, match="breaks off"):
        data.fetch("thing")
    assert len(server.log) == network.TRIES and not cached().exists()


def test_pieces_of_two_files_are_not_put_together(server):
    add(server.serve("/a", body(OTHER, cut=CUT), body(BODY)))  # the file on the server changed in between
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={CUT}-", None]


def test_cut_download_of_unknown_checksum_starts_over(server):
    add(server.serve("/a", body(OTHER, cut=CUT), body(BODY)), sha256=False, size=False)
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, None] and left_over() == []


@pytest.mark.parametrize("left", [OTHER, OTHER + b"more"])
def test_part_with_nothing_to_come_starts_over(server, left):
    add(server.serve("/a", body(BODY)))
    cached().parent.mkdir(parents=True)
    cached("sub/thing.bin.part").write_bytes(left)
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [f"bytes={len(left)}-", None]


@pytest.mark.parametrize("size", [True, False])
def test_part_that_is_whole_is_not_sent_again(server, size):
    add(server.serve("/a", body(BODY)), size=size)
    cached().parent.mkdir(parents=True)
    cached("sub/thing.bin.part").write_bytes(BODY)
    assert data.fetch("thing").read_bytes() == BODY
    assert server.sent == [0] and left_over() == []


def test_range_not_satisfiable_starts_over(server):
    add(server.serve("/a", status(416), body(BODY)))
    cached().parent.mkdir(parents=True)
    cached("sub/thing.bin.part").write_bytes(BODY[:1000])
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_wrong_range_in_the_answer_starts_over(server):
    def wrong(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(BODY) - 1}/{len(BODY)}")
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY)

    add(server.serve("/a", wrong, body(BODY)))
    cached().parent.mkdir(parents=True)
    cached("sub/thing.bin.part").write_bytes(BODY[:1000])
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_content_length_too_short(server):
    add(server.serve("/a", body(BODY, ranges=False, length=1000)))
    with pytest.raises(data.DownloadError, match="sent 1,000 of 307,200 bytes"):
        data.fetch("thing")
    assert not cached().exists()


def test_content_length_too_short_once(server):
    add(server.serve("/a", body(BODY, length=1000), body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, "bytes=1000-"]


@pytest.mark.parametrize("known", [True, False])
def test_content_length_too_long(server, known):
    add(server.serve("/a", body(BODY, length=len(BODY) + 1000)), sha256=known, size=known)
    if known:  # what has come is all of it
        assert data.fetch("thing").read_bytes() == BODY and server.sent == [len(BODY), 0]
    else:
        with pytest.raises(data.DownloadError, match="breaks off"):
            data.fetch("thing")
        assert not cached().exists() and len(server.log) == network.TRIES


def test_file_too_long(server):
    add(server.serve("/a", body(BODY * 3)))
    with pytest.raises(data.DownloadError, match="sent more than the 307,200 bytes that it may have"):
        data.fetch("thing")
    assert not cached().exists() and left_over() == []


def test_wrong_file_is_named_and_the_next_address_asked(server, capsys):
    add(server.serve("/a", body(OTHER)), server.serve("/b", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.log == [("/a", None), ("/b", None)]


def test_wrong_file_everywhere(server):
    url = server.serve("/a", body(OTHER))
    add(url)
    with pytest.raises(data.DownloadError) as error:
        data.fetch("thing")
    message = str(error.value)
    assert f"{url}: sent a file that has another checksum" in message
    assert hashlib.sha256(OTHER).hexdigest() in message and hashlib.sha256(BODY).hexdigest() in message
    assert not cached().exists() and left_over() == []


@pytest.mark.parametrize("size", [True, False])
def test_web_page_with_status_200(server, size):
    add(server.serve("/a", body(b"<html>please log in</html>", ranges=False)), size=size)
    with pytest.raises(data.DownloadError, match="another checksum" if not size else "of 307,200 bytes"):
        data.fetch("thing")
    assert not cached().exists()


def test_500_then_ok(server):
    add(server.serve("/a", status(500), status(503), body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert len(server.log) == 3


def test_always_500(server):
    add(server.serve("/a", status(500)))
    with pytest.raises(data.DownloadError, match="HTTP 500"):
        data.fetch("thing")
    assert len(server.log) == network.TRIES and not cached().exists()


def test_404_is_not_asked_again_and_the_second_address_is(server):
    add(server.serve("/gone", status(404)), server.serve("/b", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.log == [("/gone", None), ("/b", None)]


def test_error_names_each_address_its_reason_and_the_way_out(server):
    gone, broken = server.serve("/gone", status(404)), server.serve("/broken", status(500))
    add(gone, broken)
    with pytest.raises(data.DownloadError) as error:
        data.fetch("thing")
    message = str(error.value)
    assert f"{gone}: HTTP 404 Not Found" in message and f"{broken}: HTTP 500" in message
    for part in (str(cached()), hashlib.sha256(BODY).hexdigest(), "307,200 bytes", "LLM_MIRROR", "--all --to DIR"):
        assert part in message


def test_silent_server_times_out_and_is_not_asked_again(server, monkeypatch):
    monkeypatch.setattr(network, "READ_TIMEOUT", 0.2)
    add(server.serve("/a", silent(20)))
    add(server.serve("/b", body(BODY)), name="second", file="second.bin")
    begin = time.monotonic()
    with pytest.raises(data.DownloadError, match="no answer within 0.2 s"):
        data.fetch("thing")
    assert time.monotonic() - begin < 10
    with pytest.raises(data.DownloadError, match="no answer within 0.2 s"):
        data.fetch("second")
    assert {path for path, _ in server.log} == {"/a"}
    monkeypatch.setattr(download, "dead_hosts", {})  # as after a while
    assert data.fetch("second").read_bytes() == BODY


def test_server_that_falls_silent_in_the_middle(server, monkeypatch):
    monkeypatch.setattr(network, "READ_TIMEOUT", 0.2)
    hold = threading.Event()
    add(server.serve("/a", body(BODY, cut=CUT, hold=hold), body(BODY)))
    try:
        assert data.fetch("thing").read_bytes() == BODY
        assert len(server.log) == 2 and server.ranges[1].startswith("bytes=")
    finally:
        hold.set()


def test_host_that_swallows_packets_is_given_up_soon_and_once(monkeypatch, capsys):
    calls = []

    def hang(address, timeout, *args, **kwargs):
        calls.append((address, timeout))
        time.sleep(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(urllib3.util.connection, "create_connection", hang)
    monkeypatch.setattr(network, "CONNECT_TIMEOUT", 0.2)
    for name in ("thing", "second"):
        add("https://data.invalid/x", name=name, file=f"{name}.bin", sample=f"{name}.txt")
    assert places.is_sample(data.fetch("thing"))
    assert places.is_sample(data.fetch("second"))
    assert calls == [(("data.invalid", 443), 0.2)]
    assert "thing: not reachable (data.invalid: no connection within 0.2 s), using" in capsys.readouterr().out
    monkeypatch.setattr(download, "FORGET", -1)
    download.dead_hosts.clear()
    data.fetch("thing"), data.fetch("second")
    assert len(calls) == 3  # after a while it is asked again


def test_unknown_host_and_closed_port(server, monkeypatch):
    look_up, looked_up = socket.getaddrinfo, []

    def no_such_name(host, *args):
        looked_up.append(host)
        if host == "name.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args)

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    server.close()
    add("http://name.invalid/a", server.address + "/b")
    with pytest.raises(data.DownloadError) as error:
        data.fetch("thing")
    assert "http://name.invalid/a: its name is not known here" in str(error.value)
    assert f"{server.address}/b: no connection (" in str(error.value)
    with pytest.raises(data.DownloadError, match="its name is not known here"):
        data.fetch("thing")
    assert looked_up == ["name.invalid", "127.0.0.1"]  # each of them once, and never again


# --- servers that push back, encode, never end, or send something else -----------------------------------------------


@pytest.fixture
def sleeps(monkeypatch):
    """The pauses that were made, none of which takes time."""
    pauses = []
    monkeypatch.setattr(network, "PAUSE", 0.5)
    monkeypatch.setattr(network.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_in_seconds(server, sleeps, capsys, code):
    add(server.serve("/a", *[status(code, "7")] * 5, body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert sleeps == [7, 7, 7, 7, 8]  # the last is our own, by then longer, pause
    assert f"127.0.0.1: HTTP {code} " in (out := capsys.readouterr().out) and "asking again in 7 s" in out


def test_retry_after_as_a_date(server, sleeps):
    add(server.serve("/a", status(429, email.utils.formatdate(time.time() + 20, usegmt=True)), body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert len(sleeps) == 1 and 15 < sleeps[0] <= 20


@pytest.mark.parametrize("after", [None, "0", "soon", "-5", "", "Mon, 99 Nonsense", email.utils.formatdate(1e9)])
def test_too_many_requests_without_a_time_to_wait(server, sleeps, after):
    add(server.serve("/a", *[status(429, after)] * 4, body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert sleeps == [0.5, 1, 2, 4]


@pytest.mark.parametrize("after", ["3600", "9" * 400, email.utils.formatdate(time.time() + 86_400)])
def test_server_that_asks_for_too_much_patience(server, sleeps, after):
    add(server.serve("/a", status(429, after)), server.serve("/b", status(503, after)))
    with pytest.raises(data.DownloadError, match=r"HTTP 429 Too Many Requests, Retry-After: ") as error:
        data.fetch("thing")
    assert sleeps == [] and "HTTP 503" not in str(error.value)  # the whole host is left alone for a while
    assert server.log == [("/a", None)]


def test_server_that_always_asks_for_a_pause(server, sleeps):
    add(server.serve("/a", status(429, "0")), sample="small.txt")
    assert places.is_sample(data.fetch("thing"))
    assert network.PATIENCE / 3 < sum(sleeps) <= network.PATIENCE


def test_push_back_in_the_middle_of_a_file(server, sleeps):
    add(server.serve("/a", body(BODY, cut=CUT), status(429, "3"), status(503, "3"), body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges[1:] == [f"bytes={CUT}-"] * 3


def test_json_of_a_server_that_pushes_back(server, sleeps):
    url = server.serve("/a", status(429, "9"), status(503), body(b'{"a": "\\ud83d"}'))
    assert network.ask_json("GET", url)[0] == {"a": "\ufffd"} and sleeps == [9, 1]
    server.serve("/a", status(500), status(500), body(b"[1]", cut=1), body(b"[1]"))
    assert network.ask_json("GET", url)[0] == [1] and len(server.log) == 7
    server.serve("/a", status(404))
    with pytest.raises(network.Failed, match="HTTP 404 Not Found"):
        network.ask_json("GET", url)


def test_what_may_have_been_paid_for_is_not_sent_twice(server, sleeps):
    for first, answers in ((status(500), 1), (body(b"[1]", cut=1), 1), (status(429), 2), (status(503, "1"), 2)):
        url, before = server.serve("/a", first, body(b"[1]")), len(server.log)
        if answers == 1:
            with pytest.raises(network.Failed, match="HTTP 500|breaks off"):
                network.ask_json("POST", url, json={})
        else:
            assert network.ask_json("POST", url, json={})[0] == [1]
        assert len(server.log) == before + answers


@pytest.mark.parametrize("answer", [endless(b" " * 2**16), endless(b" " * 2**16, chunked=True), endless(b" ", 0.05),
                                    endless(b" ", 0.05, head=False), endless(b" ", 0.05, chunked=True),
                                    encoded(gzip.compress(bytes(2**26)), "gzip")])  # fmt: skip
def test_json_that_never_ends(server, monkeypatch, answer):
    monkeypatch.setattr(network, "LARGEST_ANSWER", 2**20)
    begin = time.monotonic()
    with pytest.raises(network.Failed, match="no end of its answer within 0.5 s and 1,048,576 b|no answer within 0.5"):
        network.ask_json("POST", server.serve("/a", answer), seconds=0.5)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("chunked", [True, False])
def test_redirect_is_followed_and_what_comes_with_it_is_not_read(server, chunked):
    add(server.serve("/a", endless(bytes(2**16), to="/b", chunked=chunked)))
    server.serve("/b", body(BODY, cut=CUT), body(BODY))
    assert data.fetch("thing").read_bytes() == BODY
    assert [path for path, _ in server.log] == ["/a", "/b", "/a", "/b"]
    add(server.serve("/c", lambda handler: moved(handler, to="/c")), name="c", file="c.bin")
    with pytest.raises(data.DownloadError, match="this address cannot be asked .*Exceeded 30 redirects"):
        data.fetch("c")


def moved(handler, to):
    handler.send_response(302)
    handler.send_header("Location", to)
    handler.end_headers()


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_json_that_is_none(server, content):
    with pytest.raises(network.Failed, match="its answer is no JSON"):
        network.ask_json("GET", server.serve("/a", body(content)))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("file", "label"), [("a.jsonl.gz", "gzip"), ("a.gz", "x-gzip"), ("a.tar.zst", "zstd")])
def test_packed_file_that_is_labelled_as_encoded_is_kept_as_it_is(server, file, label, known):
    packed = gzip.compress(BODY, mtime=0)
    add(server.serve("/a", encoded(packed, label, cut=500), encoded(packed, label)), content=packed, file=file,
        sha256=known, size=known)  # fmt: skip
    assert data.fetch("thing").read_bytes() == packed
    assert server.ranges == [None, "bytes=500-" if known else None]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("file", ["a.txt", "sub/thing.bin", "a.zip"])
def test_file_that_is_encoded_on_its_way_is_decoded(server, file, known):
    packed = gzip.compress(BODY, mtime=0)
    add(server.serve("/a", encoded(packed, "gzip", cut=500), encoded(packed, "gzip")), file=file, sha256=known,
        size=known)  # fmt: skip
    assert data.fetch("thing").read_bytes() == BODY


def test_encoding_that_cannot_be_undone(server):
    add(server.serve("/a", encoded(BODY, "rot13")), server.serve("/b", encoded(BODY, "gzip")), sha256=False, size=False)
    with pytest.raises(data.DownloadError, match=r"(?s)encoding that is not known here \(rot13\).*cannot be undone"):
        data.fetch("thing")
    assert not cached().exists()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("answer", [endless(bytes(2**16)), endless(bytes(2**16), chunked=True),
                                    encoded(gzip.compress(bytes(2**26)), "gzip")])  # fmt: skip
def test_file_that_never_ends(server, answer, known):
    add(server.serve("/a", answer), server.serve("/b", body(BODY)), sha256=known, size=known)
    REGISTRY["thing"] = replace(REGISTRY["thing"], limit=2**20)
    assert data.fetch("thing").read_bytes() == BODY
    deadline = time.monotonic() + 10
    while len(server.sent) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(BODY) in server.sent and max(server.sent) < 2**25, server.sent  # what buffers hold, and no more


@pytest.mark.parametrize("answer", [endless(b"x", 0.02), endless(b"x", 0.02, chunked=True)])
def test_file_that_drips(server, monkeypatch, answer):
    monkeypatch.setattr(download, "WINDOW", 0.3)
    add(server.serve("/a", answer), server.serve("/b", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert [path for path, _ in server.log] == ["/a", "/b", "/b"]  # what had come was not its beginning


def test_headers_that_drip(server, monkeypatch):
    monkeypatch.setattr(network, "READ_TIMEOUT", 0.3)
    add(server.serve("/a", endless(b"x", 0.02, head=False)))
    with pytest.raises(data.DownloadError, match="no answer within 0.3 s"):
        data.fetch("thing")


@pytest.mark.parametrize("mirror", ["http://", "http://127.0.0.1:port", "https://a..b"])
def test_mirror_address_that_is_none(server, monkeypatch, mirror):
    monkeypatch.setenv("LLM_MIRROR", mirror)
    add(server.serve("/a", status(404)))
    with pytest.raises(data.DownloadError, match="this address cannot be asked"):
        data.fetch("thing")


PAGES = [b"<html>please log in</html>", b"\xef\xbb\xbf\n<!DOCTYPE HTML>\n<title>Room</title>",
         b'<?xml version="1.0"?>\n<!doctype html ...>']  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("reader", [None, formats.read_records])
def test_web_page_is_not_kept_and_what_comes_next_is_taken(server, page, reader):
    add(server.serve("/a", body(page, ranges=False)), server.serve("/b", status(404), body(LINES)), sha256=False,
        size=False, file="sub/lines.jsonl")  # fmt: skip
    REGISTRY["thing"] = replace(REGISTRY["thing"], reader=reader)
    with pytest.raises(data.DownloadError, match=r"/a: sent a file that is a web page \(HTML\)"):
        data.fetch("thing")
    assert not cached("sub/lines.jsonl").exists() and not cached("sub/lines.jsonl.sha256").exists()
    assert data.fetch("thing").read_bytes() == LINES
    assert cached("sub/lines.jsonl.sha256").read_text() == hashlib.sha256(LINES).hexdigest()


@pytest.mark.parametrize("bad", [PAGES[0], b'{"error": "later"}\n', b'{"text": "o', b"[1, 2]\n", b"\xff\xfe{\0"])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("source", ["folder", "address", "official"])
def test_bad_file_that_is_in_the_cache_already_is_healed(server, tmp_path, monkeypatch, capsys, bad, recorded, source):
    server.serve("/sub/lines.jsonl", body(LINES))
    add(server.address + ("/sub/lines.jsonl" if source == "official" else "/x"), sha256=False, size=False,
        file="sub/lines.jsonl")  # fmt: skip
    REGISTRY["thing"] = replace(REGISTRY["thing"], reader=words)
    put(tmp_path, "data/sub/lines.jsonl", bad)
    put(tmp_path, "stick/sub/lines.jsonl", LINES)
    if recorded:
        put(tmp_path, "data/sub/lines.jsonl.sha256", hashlib.sha256(bad).hexdigest().encode())
    if source != "official":
        monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "stick") if source == "folder" else server.address)
    assert data.fetch("thing").read_bytes() == LINES
    assert re.search(r"sub/lines.jsonl (is a web page|cannot be read).*; it is not used", capsys.readouterr().out)
    assert data.fetch("thing").read_bytes() == LINES


def test_good_record_outlives_a_file_that_was_damaged_later(server, tmp_path):
    add(server.serve("/a", body(LINES), body(LINES.replace(b"one", b"1ne"))), sha256=False, size=False)
    REGISTRY["thing"] = replace(REGISTRY["thing"], reader=words)
    data.fetch("thing").write_bytes(LINES[:-5])
    with pytest.raises(data.DownloadError, match="another checksum"):
        data.fetch("thing")


@pytest.mark.parametrize("record", [b"", b"12ab", b"\xff\xfe", PAGES[0]])
def test_record_that_is_none_counts_for_nothing(server, tmp_path, record):
    add(server.serve("/a", body(BODY)), sha256=False, size=False)
    put(tmp_path, "data/sub/thing.bin.sha256", record)
    assert data.fetch("thing").read_bytes() == BODY
    assert cached("sub/thing.bin.sha256").read_text() == hashlib.sha256(BODY).hexdigest()


def test_cut_parquet_of_unknown_checksum_is_named(entries, server, tmp_path, monkeypatch, capsys):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    packed = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [f"line {i}\n" for i in range(1000)]}), packed)
    whole = packed.getvalue()
    urls = (server.serve("/a", body(whole[:-8], ranges=False)), server.serve("/b", body(whole)))
    entries["wikitext2"] = replace(entries["wikitext2"], size=None, urls=urls, others=(), sample=None)
    file = put(tmp_path, "stick/eval/wikitext2_raw_test.parquet", whole[:2000])
    monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "stick"))
    assert data.fetch("wikitext2").read_bytes() == whole
    assert f"{file} cannot be read" in capsys.readouterr().out and len(server.log) == 2


# --- proxies and certificates ----------------------------------------------------------------------------------------


def test_proxy_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.address)
    monkeypatch.setenv("http_proxy", server.address)
    add("http://data.invalid/a")
    server.serve("http://data.invalid/a", body(BODY))
    assert data.fetch("thing").read_bytes() == BODY


def test_proxy_that_does_not_answer(server, monkeypatch):
    server.close()
    monkeypatch.setenv("HTTP_PROXY", server.address.removeprefix("http://"))
    monkeypatch.setenv("http_proxy", server.address.removeprefix("http://"))
    add("http://data.invalid/a")
    with pytest.raises(data.DownloadError, match="data.invalid/a: the proxy that is set .* gives no connection"):
        data.fetch("thing")


def test_server_without_a_certificate(server):
    add(server.address.replace("http:", "https:") + "/a")
    with pytest.raises(data.DownloadError, match="its TLS certificate is not accepted"):
        data.fetch("thing")


def test_progress_bar_only_for_big_files(server, monkeypatch, capsys):
    add(server.serve("/a", body(BODY)))
    add(server.serve("/b", body(BODY)), name="second", file="second.bin")
    data.fetch("thing")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(download, "BIG", 1000)
    data.fetch("second")
    assert "second.bin: " in capsys.readouterr().out


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [OTHER, BODY[:1000], b""])
def test_damaged_cache_is_named_and_replaced(server, capsys, wrong):
    add(server.serve("/a", body(BODY)))
    cached().parent.mkdir(parents=True)
    cached().write_bytes(wrong)
    assert data.fetch("thing").read_bytes() == BODY
    assert f"{cached()} has " in capsys.readouterr().out and left_over() == []


def test_known_file_that_was_damaged_later_is_repaired(server):
    add(server.serve("/a", body(BODY)))
    assert data.fetch("thing") == data.fetch("thing")  # downloaded, then read and remembered
    cached().write_bytes(OTHER)
    os.utime(cached(), ns=(1, 1))
    assert data.fetch("thing").read_bytes() == BODY and len(server.log) == 2


def test_large_file_is_read_once_and_again_when_it_changed(server, monkeypatch, capsys):
    monkeypatch.setattr(checks, "LARGE", 1000)
    add(server.serve("/a", body(BODY)))
    path, read = data.fetch("thing"), []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(name) or digest(file, name))
    for _ in range(3):
        monkeypatch.setattr(checks, "_checked", {})  # as in another process
        assert data.fetch("thing") == path
    assert len(read) == 1
    os.utime(path, ns=(1, 1))  # the same file, copied anew
    monkeypatch.setattr(checks, "_checked", {})
    assert data.fetch("thing") == path and len(read) == 2
    path.write_bytes(OTHER)  # as long as the right one
    monkeypatch.setattr(checks, "_checked", {})
    assert data.fetch("thing").read_bytes() == BODY and len(server.log) == 2
    assert "another checksum" in capsys.readouterr().out


def test_damaged_cache_is_not_used_offline(monkeypatch, capsys):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    add("http://127.0.0.1:9/a", sample="small.txt")
    cached().parent.mkdir(parents=True)
    cached().write_bytes(OTHER)
    assert places.is_sample(data.fetch("thing"))
    assert f"{cached()} has another checksum" in capsys.readouterr().out


def test_unknown_checksum_is_recorded_and_holds_from_then_on(server, capsys):
    add(server.serve("/a", body(BODY), body(OTHER)), sha256=False, size=False)
    path = data.fetch("thing")
    assert cached("sub/thing.bin.sha256").read_text(encoding="utf-8") == hashlib.sha256(BODY).hexdigest()
    assert data.fetch("thing") == path and len(server.log) == 1
    path.unlink()
    with pytest.raises(data.DownloadError, match="another checksum") as error:
        data.fetch("thing")
    assert "recorded in the cache, in sub/thing.bin.sha256" in str(error.value) and not path.exists()
    cached("sub/thing.bin.sha256").unlink()
    assert data.fetch("thing").read_bytes() == OTHER


def test_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "file" / "data"))
    add(server.serve("/a", body(BODY)), sample="small.txt")
    with pytest.raises(data.DownloadError, match=rf"cannot be used \({tmp_path}/file.*: Not a dir.*LLM_DATA_DIR"):
        data.fetch("thing")


def test_full_disk_says_so_and_goes_on_later(server, monkeypatch):
    add(server.serve("/a", body(BODY)), sample="small.txt")

    class Full:
        """A file that takes two blocks and no more."""

        def __init__(self, *args):
            self.file, self.room = open(*args), 2**17  # noqa: SIM115 (closed in __exit__)

        def write(self, block):
            self.room -= len(block)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

    with monkeypatch.context() as patch:
        patch.setattr(download, "open", Full, raising=False)
        with pytest.raises(data.DownloadError, match="thing.bin: No space left on device"):
            data.fetch("thing")
    kept = cached("sub/thing.bin.part").stat().st_size
    assert not cached().exists() and 0 < kept <= 2**17
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


def test_read_only_cache_with_the_file_is_fine(monkeypatch):
    add("http://127.0.0.1:9/a")
    cached().parent.mkdir(parents=True)
    cached().write_bytes(BODY)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert data.fetch("thing") == cached()


def test_large_file_in_a_read_only_cache_is_fine(monkeypatch):
    monkeypatch.setattr(checks, "LARGE", 1000)
    add("http://127.0.0.1:9/a")
    cached().parent.mkdir(parents=True)
    cached().write_bytes(BODY)

    def read_only(path, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_text", read_only)
    assert data.fetch("thing") == cached() and left_over() == []


@pytest.mark.parametrize("what", ["sub", "sub/thing.bin", "sub/thing.bin.part", "sub/thing.bin.lock",
                                  "sub/thing.bin.sha256"])  # fmt: skip
def test_cache_with_something_in_the_way_is_named(server, what):
    add(server.serve("/a", body(BODY)), sha256=False, size=False)
    place = places.data_dir() / what
    if what == "sub":
        put(place.parent, place.name, b"a file where a folder belongs")
    else:
        (place / "a folder where a file belongs").mkdir(parents=True)
    with pytest.raises(data.DownloadError, match=rf"cannot be used \({place}(\.part)?: (File exists|Is a directory)"):
        data.fetch("thing")


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("end", [".part", ".lock", ".sha256", ".checked", ""])
@pytest.mark.parametrize("known", [True, False])
def test_link_beside_a_file_is_never_written_through(server, tmp_path, monkeypatch, end, link, known):
    if end == ".lock" and link is os.link:
        pytest.skip("a lock is opened, but nothing is written into it")
    monkeypatch.setattr(checks, "LARGE", 1000)
    add(server.serve("/a", body(BODY, cut=CUT), body(BODY)), sha256=known, size=known)
    REGISTRY["thing"] = replace(REGISTRY["thing"], reader=None if known else whole)
    mine = put(tmp_path, "mine.txt", BODY[:5000])
    cached().parent.mkdir(parents=True)
    link(mine, f"{cached()}{end}")
    assert data.fetch("thing").read_bytes() == BODY == data.fetch("thing").read_bytes()
    assert mine.read_bytes() == BODY[:5000] and not cached().is_symlink()


def whole(path):
    if path.read_bytes() != BODY:
        raise ValueError("it is another")


def test_link_to_nowhere_and_to_a_pipe(server, tmp_path):
    add(server.serve("/a", body(BODY)))
    cached().parent.mkdir(parents=True)
    for end in (".part", ".lock", ""):
        os.symlink(tmp_path / f"nowhere{end}", f"{cached()}{end}")
    assert data.fetch("thing").read_bytes() == BODY
    assert not list(tmp_path.glob("nowhere*"))
    cached().unlink()
    os.mkfifo(f"{cached()}.part")
    assert data.fetch("thing").read_bytes() == BODY


def test_cache_and_file_may_be_links_of_the_user(server, tmp_path, monkeypatch):
    add(server.serve("/a", body(BODY)))
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "link")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "link"))
    assert data.fetch("thing").read_bytes() == BODY == (tmp_path / "disk/sub/thing.bin").read_bytes()
    os.rename(cached(), tmp_path / "big.bin")
    os.symlink(tmp_path / "big.bin", cached())
    assert data.fetch("thing") == cached() and cached().is_symlink() and len(server.log) == 1


def test_link_in_a_mirror_that_is_made(server, tmp_path):
    add(server.serve("/a", body(BODY)))
    mine = put(tmp_path, "mine.txt", b"mine")
    for end in (".part", ""):
        (tmp_path / "stick/sub").mkdir(parents=True, exist_ok=True)
        os.symlink(mine, tmp_path / f"stick/sub/thing.bin{end}")
        assert main(["thing", "--to", str(tmp_path / "stick")]) == 0
        assert mine.read_bytes() == b"mine" and (tmp_path / "stick/sub/thing.bin").read_bytes() == BODY
        (tmp_path / "stick/sub/thing.bin").unlink()


# --- mirror, sample, offline -----------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "stick"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.setenv("LLM_MIRROR", str(folder))
    return folder


def test_mirror_folder_is_used_where_it_lies(server, mirror, monkeypatch):
    add(server.serve("/a", body(BODY)))
    (mirror / "sub/thing.bin").write_bytes(BODY)
    assert data.fetch("thing") == mirror / "sub/thing.bin"
    assert server.log == [] and not cached().exists()
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: pytest.fail("a known file was read again"))
    assert data.fetch("thing") == mirror / "sub/thing.bin"


def test_mirror_folder_with_a_wrong_file(server, mirror, capsys):
    add(server.serve("/a", body(BODY)))
    (mirror / "sub/thing.bin").write_bytes(OTHER)
    assert data.fetch("thing") == cached() and cached().read_bytes() == BODY
    out = capsys.readouterr().out
    assert str(mirror / "sub/thing.bin") in out and "another checksum" in out
    assert (mirror / "sub/thing.bin").read_bytes() == OTHER  # a mirror is not ours to change


def test_mirror_folder_without_the_file_and_no_network(mirror, monkeypatch, capsys):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    add("http://127.0.0.1:9/a", sample="small.txt")
    assert places.is_sample(data.fetch("thing"))


def test_mirror_folder_that_is_not_there(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "nowhere"))
    add(server.serve("/a", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().out


@pytest.mark.parametrize("offline", ["", "1"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_mirror_address_comes_first_also_offline(server, monkeypatch, offline, slash):
    monkeypatch.setenv("LLM_MIRROR", server.address + "/room 5".replace(" ", "%20") + slash)
    monkeypatch.setenv("LLM_OFFLINE", offline)
    server.serve("/room%205/sub/thing.bin", body(BODY))
    add(server.serve("/a", body(BODY)))
    assert data.fetch("thing") == cached() and cached().read_bytes() == BODY
    assert server.log == [("/room%205/sub/thing.bin", None)]


def test_mirror_address_without_the_file(server, monkeypatch):
    monkeypatch.setenv("LLM_MIRROR", server.address)
    add(server.serve("/a", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert server.log == [("/sub/thing.bin", None), ("/a", None)]


def test_offline_with_sample_says_so_in_one_line(server, monkeypatch, capsys):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    add(server.serve("/a", body(BODY)), sample="small.txt")
    path = data.fetch("thing")
    assert path == places.SAMPLES / "small.txt" and places.is_sample(path) and places.is_sample(str(path))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "thing: not reachable (offline" in out and "bundled sample small.txt (written for this course)" in out
    assert server.log == []


def test_unreachable_with_sample_says_why(server, capsys):
    add(server.serve("/a", status(404)), sample="small.txt")
    assert places.is_sample(data.fetch("thing"))
    assert "not reachable (127.0.0.1: HTTP 404 Not Found), using the bundled sample" in capsys.readouterr().out


def test_no_sample_wanted(monkeypatch):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    add("http://127.0.0.1:9/a", sample="small.txt")
    with pytest.raises(data.DownloadError):
        data.fetch("thing", sample_ok=False)


@pytest.mark.parametrize("sample", [None, "small.txt"])
def test_offline_without_sample(monkeypatch, sample):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    add("http://127.0.0.1:9/a", sample=sample)
    if sample:
        (places.SAMPLES / sample).unlink()  # a checkout that lacks it
    with pytest.raises(data.DownloadError, match="http://127.0.0.1:9/a: not asked, LLM_OFFLINE is set"):
        data.fetch("thing")


@pytest.mark.parametrize("value", ["0", "", "no", "False"])
def test_not_offline(server, monkeypatch, value):
    monkeypatch.setenv("LLM_OFFLINE", value)
    add(server.serve("/a", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY


def test_unknown_name():
    add(name="the_verdict")
    with pytest.raises(ValueError, match="'the_verdikt'; did you mean the_verdict"):
        data.fetch("the_verdikt")
    with pytest.raises(ValueError, match="'zzz'; did you mean the_verdict"):
        data.fetch("zzz")


def test_relative_folders_count_from_the_course_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_DATA_DIR", "elsewhere")
    assert places.data_dir() == ROOT / "elsewhere"
    monkeypatch.delenv("LLM_DATA_DIR")
    assert places.data_dir() == ROOT / "data"


# --- several forms of the same data ----------------------------------------------------------------------------------

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def words(path):
    return [record["text"] for record in formats.read_records(path)]


def add_forms(url, *, sample=None):
    """A data set that is published as JSON lines and also exists packed (in mirrors) and as plain words."""
    packed, plain = gzip.compress(LINES, mtime=0), b"one two"
    add(url + "/lines", content=LINES, file="sub/lines.jsonl", sample=sample)
    forms = (
        Form("packed/lines.jsonl.gz", len(packed), hashlib.sha256(packed).hexdigest(), reader=words),
        Form("plain.txt", len(plain), None, (url + "/plain",), reader=lambda path: path.read_text().split()),
    )
    REGISTRY["thing"] = replace(REGISTRY["thing"], reader=words, others=forms)
    return packed, plain


def test_own_file_first_then_the_others(server):
    _, plain = add_forms(server.address)
    server.serve("/lines", body(LINES))
    server.serve("/plain", body(plain))
    path = data.fetch("thing")
    assert path == cached("sub/lines.jsonl") and data.load(path) == ["one", "two"]
    path.unlink()
    server.serve("/lines", status(404))
    path = data.fetch("thing")
    assert path == cached("plain.txt") and data.load(path) == ["one", "two"]
    assert cached("plain.txt.sha256").read_text(encoding="utf-8") == hashlib.sha256(plain).hexdigest()
    assert data.fetch("thing") == path and [asked for asked, _ in server.log] == ["/lines", "/lines", "/plain"]


def test_another_form_in_the_mirror_comes_before_the_network(server, mirror, capsys):
    packed, _ = add_forms(server.address)
    (mirror / "packed").mkdir()
    (mirror / "packed/lines.jsonl.gz").write_bytes(packed)
    path = data.fetch("thing")
    assert path == mirror / "packed/lines.jsonl.gz" and data.load(path) == ["one", "two"] and server.log == []
    copied = mirror.parent / "copy"
    assert main(["thing", "--to", str(copied)]) == 0
    assert (copied / "packed/lines.jsonl.gz").read_bytes() == packed
    main(["--list"])
    assert "packed/lines.jsonl.gz" in capsys.readouterr().out
    (mirror / "packed/lines.jsonl.gz").write_bytes(packed[:-3])
    server.serve("/lines", body(LINES))
    assert data.fetch("thing") == cached("sub/lines.jsonl")
    assert "bytes instead of" in capsys.readouterr().out


def test_error_names_the_addresses_of_all_forms(server):
    add_forms(server.address)
    with pytest.raises(data.DownloadError) as error:
        data.fetch("thing")
    assert "/lines: HTTP 404" in str(error.value) and "/plain: HTTP 404" in str(error.value)


def test_sample_is_read_like_the_own_file(monkeypatch):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    add_forms("http://127.0.0.1:9", sample="few.jsonl")
    (places.SAMPLES / "few.jsonl").write_bytes(LINES)
    assert data.load(data.fetch("thing")) == ["one", "two"]


@pytest.mark.parametrize(("file", "content"), [
    ("sub/lines.jsonl", b'{"text": "one"}\n{"te'), ("sub/lines.jsonl", b'{"other": 1}\n'),
    ("sub/lines.jsonl", b"\xff\xfe"), ("packed/lines.jsonl.gz", b"no gzip"),
    ("packed/lines.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9]),
])  # fmt: skip
def test_file_that_cannot_be_read_is_named(tmp_path, file, content):
    add_forms("http://127.0.0.1:9")
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} cannot be read"):
        data.load(path)
    with pytest.raises(ValueError, match="is no file of this course's data"):
        data.load(tmp_path / "elsewhere.txt")


def test_packed_records(tmp_path):
    zstandard, pyarrow = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    half = LINES.index(b"\n") + 1
    frames = zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:])  # two frames, as some tools write them
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    for name in ("a.jsonl.zst", "a.jsonl.gz", "a.parquet"):
        assert formats.read_records(tmp_path / name) == [{"text": "one"}, {"text": "two"}], name


def frames_of(zstandard):
    return b"".join(zstandard.compress(LINES.replace(b"o", b"%d" % i) * 20) for i in range(3))


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_packed_file_that_was_cut_anywhere_is_refused(tmp_path, kind):
    packed = gzip.compress(LINES * 20, mtime=0) if kind == "gz" else frames_of(pytest.importorskip("zstandard"))
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed)
    whole = formats.read_records(path)
    assert len(whole) == (40 if kind == "gz" else 120)
    short = 0
    for end in range(len(packed)):
        path.write_bytes(packed[:end])
        try:
            short += len(formats.read_records(path)) in (40, 80)  # an end between two frames is none that can be seen
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
    assert short == (0 if kind == "gz" else 2)


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet"])
def test_packed_file_that_is_damaged_raises_what_is_promised(tmp_path, kind):
    path = tmp_path / f"a.jsonl.{kind}"
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": ["one", "two"] * 50}), path)
        packed = path.read_bytes()
    else:
        packed = gzip.compress(LINES * 20) if kind == "gz" else frames_of(pytest.importorskip("zstandard"))
    refused = 0
    for place in range(0, len(packed), 1 + len(packed) // 300):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 0x55]) + packed[place + 1 :])
        try:
            formats.read_records(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 20
    for content in (b"", b"no such thing", packed[::-1], packed + b"more"):
        path.write_bytes(content)
        if not (kind == "parquet" and content == packed + b"more"):
            with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
                formats.read_records(path)
    with pytest.raises(FileNotFoundError):
        formats.read_records(tmp_path / f"none.{kind}")


def test_parquet_with_bytes_after_its_end(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes() + b"more")
    with pytest.raises(ValueError, match="a.parquet: not valid Parquet data"):
        formats.read_records(tmp_path / "a.parquet")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(("line", "reason"), [
    (DEEP, "line 3: its lists and objects are nested too deeply"), (b'{"a": ' + DEEP + b"}", "line 3: its lists and"),
    (b'{"a": 1,}', "line 3, column 9: "), (b"[1, 2]", "line 3 holds no object, but \\[1, 2\\]"),
    (b"null", "no object, but null"),
    (b'{"a": "\xe9"}', "it is not UTF-8 \\(byte 0xe9\\)"), (b"1" * 5000, "line 3"), (b"\0", "line 3, column 1"),
])  # fmt: skip
def test_line_that_is_no_record_is_named(tmp_path, line, reason):
    path = put(tmp_path, "a.jsonl", LINES + line + b"\n" + LINES)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{reason}"):
        formats.read_records(path)


def test_json_list_that_is_nested_too_deeply(tmp_path):
    path = put(tmp_path, "a.json", DEEP)
    with pytest.raises(ValueError, match=f"{path}: its lists and objects are nested too deeply"):
        formats.read_json_list(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_byte_order_mark_costs_nothing(tmp_path, pack):
    from shared.instructions import read_entries

    end = ".gz" if pack is gzip.compress else ""
    for mark in (b"", b"\xef\xbb\xbf"):
        assert formats.read_text(put(tmp_path, f"a.txt{end}", pack(mark + b"one\r\ntwo"))) == "one\ntwo"
        assert formats.read_records(put(tmp_path, f"a.jsonl{end}", pack(mark + LINES)))[0] == {"text": "one"}
        assert read_entries(put(tmp_path, f"a.jsonl{end}", pack(mark + LINES)))[0] == {"text": "one"}
        assert formats.read_json_list(put(tmp_path, f"a.json{end}", pack(mark + b'["one"]'))) == ["one"]
        assert read_entries(put(tmp_path, f"a.json{end}", pack(mark + b'[{"a": 1}]'))) == [{"a": 1}]


def test_byte_order_mark_in_the_files_of_an_archive(entries, tmp_path):
    marked = "\ufeff" + SMS
    assert data.load(put_zip(tmp_path, {"SMSSpamCollection": marked})) == SMS
    assert data.load(put(tmp_path, "sms_spam/SMSSpamCollection", marked.encode())) == SMS
    members = {name: content if "README" in name else "\ufeff" + content for name, content in mmlu_members().items()}
    assert data.load(put_tar(tmp_path, members))["dev"][0]["question"] == ITEM["question"]
    put(tmp_path, "sms_spam/SMSSpamCollection", marked.encode() + b"ham\t\xa3\n")
    with pytest.raises(ValueError, match="line 3 is not UTF-8"):
        data.load(tmp_path / "sms_spam/SMSSpamCollection")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("read", [formats.read_text, formats.read_records, formats.read_json_list])
def test_utf_16_is_named(tmp_path, encoding, read):
    path = put(tmp_path, "a.jsonl", LINES.decode().encode(encoding))
    with pytest.raises(ValueError, match=f"{path}: it is UTF-16, or no text at all; save it as UTF-8"):
        read(path)


def test_text_in_another_encoding_is_named(tmp_path):
    path = put(tmp_path, "a.txt", b"caf\xe9")
    with pytest.raises(ValueError, match=rf"{path}: it is not UTF-8 \(byte 0xe9\)"):
        formats.read_text(path)


HALVES = '{"text": "a\\ud83d", "\\uDC00": ["\\ud83d\\ude42", {"b": "\\udead\\ud83d"}], "n": 1}'
MENDED = {"text": "a\ufffd", "\ufffd": ["\U0001f642", {"b": "\ufffd\ufffd"}], "n": 1}


def test_half_a_surrogate_pair_does_not_come_in(entries, tmp_path):
    assert formats.read_records(put(tmp_path, "a.jsonl", HALVES.encode())) == [MENDED]
    assert formats.read_json_list(put(tmp_path, "a.json", f"[{HALVES}]".encode())) == [MENDED]
    assert data.load(put(tmp_path, "instruction-data.json", f"[{HALVES}]".encode())) == [MENDED]
    assert formats.parse_json(HALVES) == formats.parse_json(HALVES.encode()) == MENDED
    passages = data.load(put(tmp_path, "eval/lambada_test.jsonl", HALVES.encode()))
    assert passages == ["a\ufffd"] and passages[0].encode("utf-8")


@pytest.mark.parametrize("values", [[1, 2], [0.5, None], [True, False], [None, None], [["a"], ["b"]], [b"\xff", b""]])
def test_column_that_is_no_text_is_named(entries, tmp_path, values):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = put(tmp_path, "eval/wikitext2_raw_test.parquet", b"")
    parquet.write_table(pyarrow.table({"text": values}), path)
    with pytest.raises(ValueError, match=f"{path} cannot be read: record 1: text is .*, not text"):
        data.load(path)
    lines = b'{"text": %d}\n' % len(values) if values[0] else b'{"other": 1}\n'
    with pytest.raises(ValueError, match="lambada_test.jsonl cannot be read: record 1: text is .*, not text"):
        data.load(put(tmp_path, "eval/lambada_test.jsonl", lines))


def safetensors_file(n_bytes=64, promised=64):
    tensors = {"__metadata__": {"format": "pt"}, "x": {"dtype": "F32", "data_offsets": [0, promised]}}
    header = json.dumps(tensors).encode("utf-8")
    return len(header).to_bytes(8, "little") + header + bytes(n_bytes)


def test_weights_of_unknown_checksum_are_checked_by_their_header(server):
    good = safetensors_file()
    broken = [safetensors_file(60), b"<html>please log in</html>", b"", good[:40], b"\x02" + bytes(7) + b"[]",
              safetensors_file(0, 64)]
    for content in broken:
        add(server.serve("/w", body(content, ranges=False)), file="w.safetensors", sha256=False, size=False)
        with pytest.raises(data.DownloadError, match="its header speaks of|has no safetensors header|is a web page"):
            data.fetch("thing")
        assert not cached("w.safetensors").exists() and not cached("w.safetensors.sha256").exists()
    server.serve("/w", body(good, ranges=False))
    path = data.fetch("thing")
    assert path.read_bytes() == good and cached("w.safetensors.sha256").is_file()
    cached("w.safetensors.sha256").unlink()
    path.write_bytes(good[:-1])  # cut off later, and its checksum not known
    server.serve("/w", status(404))
    with pytest.raises(data.DownloadError, match="its header speaks of"):
        data.fetch("thing")


# --- the readers of chapters 4 and 5 ---------------------------------------------------------------------------------

SMS = 'ham\tSee you at \u00a35 caf\u00e9\nspam\tWIN &amp; "call" now\n'


@pytest.fixture
def entries():
    """The course's own registry, whose files the tests make up."""
    REGISTRY.update(ENTRIES)
    return REGISTRY


def put(tmp_path, file, content):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_zip(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def put_zip(tmp_path, members):
    return put(tmp_path, "sms_spam/sms_spam_collection.zip", make_zip(members))


def test_sms_from_the_archive_the_plain_file_and_the_sample(entries, tmp_path, monkeypatch):
    packed = put_zip(tmp_path, {"readme": "about", "SMSSpamCollection": SMS.encode("utf-8")})
    plain = put(tmp_path, "sms_spam/SMSSpamCollection", SMS.replace("\n", "\r\n").encode("utf-8"))
    put(tmp_path, "samples/sms_messages.tsv", SMS.encode("utf-8"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    assert places.is_sample(data.fetch("sms_spam"))
    assert data.load(packed) == data.load(plain) == data.load(data.fetch("sms_spam")) == SMS
    assert sorted(path.name for path in packed.parent.iterdir()) == ["SMSSpamCollection", packed.name]  # none unpacked


def test_sms_archive_is_downloaded_and_where_it_is_gone_the_plain_file(entries, server):
    packed, plain = make_zip({"SMSSpamCollection": SMS}), SMS.encode("utf-8")
    other = replace(entries["sms_spam"].others[0], urls=(server.serve("/plain", body(plain)),), size=len(plain),
                    sha256=hashlib.sha256(plain).hexdigest())  # fmt: skip
    entries["sms_spam"] = replace(entries["sms_spam"], urls=(server.serve("/zip", body(packed), status(404)),),
                                  sha256=hashlib.sha256(packed).hexdigest(), others=(other,))  # fmt: skip
    path = data.fetch("sms_spam")
    assert path == cached("sms_spam/sms_spam_collection.zip") and data.load(path) == SMS
    path.unlink()
    path = data.fetch("sms_spam")
    assert path == cached("sms_spam/SMSSpamCollection") and data.load(path) == SMS


@pytest.mark.parametrize("name", ["smsspamcollection", "data/SMSSpamCollection", "../SMSSpamCollection", "a.txt"])
def test_sms_archive_without_the_member(entries, tmp_path, name):
    path = put_zip(tmp_path, {name: SMS})
    with pytest.raises(ValueError, match="sms_spam_collection.zip cannot be read: the archive holds no SMSSpamColl"):
        data.load(path)
    assert not (tmp_path / "SMSSpamCollection").exists()


def test_sms_archive_that_unpacks_to_too_much(entries, tmp_path):
    path = put_zip(tmp_path, {"SMSSpamCollection": bytes(readers.MEMBER_LIMIT + 1)})
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match="SMSSpamCollection unpacks to more than 10,000,000 bytes"):
        data.load(path)


def test_sms_archive_that_lies_about_its_size(entries, tmp_path):
    size = readers.MEMBER_LIMIT * 2
    path = put_zip(tmp_path, {"SMSSpamCollection": bytes(size)})
    content = path.read_bytes()
    assert content.count(size.to_bytes(4, "little")) == 2
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="cannot be read: BadZipFile"):
        data.load(path)


def test_sms_archive_that_is_cut_off_or_none(entries, tmp_path):
    path = put_zip(tmp_path, {"SMSSpamCollection": SMS})
    for content in (path.read_bytes()[:-30], b"<html>", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read: BadZipFile"):
            data.load(path)


def test_sms_in_another_encoding_names_the_line(entries, tmp_path):
    content = b"ham\tone\nham\ttwo\nspam\tonly \xa35\n"
    for path in (put(tmp_path, "sms_spam/SMSSpamCollection", content),
                 put_zip(tmp_path, {"SMSSpamCollection": content})):  # fmt: skip
        with pytest.raises(ValueError, match=r"cannot be read: line 3 is not UTF-8 \(byte 0xa3\)"):
            data.load(path)


@pytest.mark.parametrize("file", ["instruction-data.json", "instruct/alpaca_data.json", "instruct/alpaca_5000.json",
                                  "samples/instructions.json"])  # fmt: skip
def test_instructions(entries, tmp_path, file):
    found = [{"instruction": "Say caf\u00e9", "input": "", "output": "caf\u00e9"}]
    path = put(tmp_path, file, json.dumps(found, ensure_ascii=False).encode("utf-8"))
    assert data.load(path) == found
    path.write_text('{"instruction": "a"}', encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read: it holds one dict, not a list"):
        data.load(path)
    path.write_text('[\n{"instruction": "a",}]', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2, column 21"):
        data.load(path)


ROW = '"Which of the two, or ""both""?",one,two,three,four,C\n'
ITEM = {"question": 'Which of the two, or "both"?', "choices": ["one", "two", "three", "four"], "gold": 2}


def mmlu_members(folder="data", subjects=("first_aid", "logic")):
    members = {f"{folder}/{split}/{subject}_{split}.csv": ROW * (1 + (split == "test"))
               for split in ("dev", "val", "test") for subject in subjects}  # fmt: skip
    return {f"{folder}/README.txt": "about", f"{folder}/auxiliary_train/race.csv": "no,row"} | members


def put_tar(tmp_path, members, file="eval/mmlu_data.tar"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if file.endswith(".gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                content = content.encode("utf-8") if isinstance(content, str) else content
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return put(tmp_path, file, packed.getvalue())


@pytest.mark.parametrize(("file", "folder"), [("eval/mmlu_data.tar", "data"), ("eval/mmlu.tar.gz", "mmlu"),
                                              ("eval/mmlu_data.tar", "./data")])  # fmt: skip
def test_mmlu(entries, tmp_path, file, folder):
    content = data.load(put_tar(tmp_path, mmlu_members(folder), file))
    assert {split: len(items) for split, items in content.items()} == {"dev": 2, "val": 2, "test": 4}
    assert content["dev"] == [{"subject": "first_aid"} | ITEM, {"subject": "logic"} | ITEM]


def test_mmlu_archive_with_paths_that_leave_the_folder(entries, tmp_path, monkeypatch):
    names = ("../dev/evil_dev.csv", "/data/dev/evil_dev.csv", "data/../../dev/evil_dev.csv", "data/dev/../evil_dev.csv",
             "data/dev/._evil_dev.csv", "data/dev/evil_test.csv", "data/train/evil_train.csv",
             "a/data/dev/evil_dev.csv")  # fmt: skip
    links = {"data/dev/link_dev.csv": (tarfile.SYMTYPE, "/etc/hostname"),
             "data/dev/hard_dev.csv": (tarfile.LNKTYPE, "x"),
             "data/dev/folder_dev.csv": (tarfile.DIRTYPE, "")}  # fmt: skip
    evil = dict.fromkeys(names, ROW) | links
    path = put_tar(tmp_path, evil | mmlu_members())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    content = data.load(path)
    assert {item["subject"] for items in content.values() for item in items} == {"first_aid", "logic"}
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="no dev questions of any subject"):
        data.load(put_tar(tmp_path, evil))


def test_mmlu_archive_that_is_not_whole(entries, tmp_path):
    path = put_tar(tmp_path, mmlu_members())
    whole = path.read_bytes()
    ends = range(512, len(mmlu_members()) * 1024 - 1, 512)  # each member: a block that names it, a block of content
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="mmlu_data.tar cannot be read"):
            data.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read: ReadError"):
        data.load(path)
    packed = put_tar(tmp_path, mmlu_members(), "eval/mmlu.tar.gz")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ValueError, match="mmlu.tar.gz cannot be read"):
        data.load(packed)


@pytest.mark.parametrize("row", ["one,two,three,four,C\n", "q,one,two,three,four,E\n", "q,1,2,3,4,five,A\n", "\n",
                                 "q,1,2,3,4,\n"])  # fmt: skip
def test_mmlu_row_that_is_no_question(entries, tmp_path, row):
    path = put_tar(tmp_path, mmlu_members() | {"data/test/logic_test.csv": ROW + row})
    with pytest.raises(ValueError, match="data/test/logic_test.csv, row 2 is no question"):
        data.load(path)


def test_mmlu_member_that_is_too_large(entries, tmp_path):
    path = put_tar(tmp_path, mmlu_members() | {"data/val/logic_val.csv": bytes(readers.MEMBER_LIMIT + 1)})
    with pytest.raises(ValueError, match="data/val/logic_val.csv unpacks to more than"):
        data.load(path)


def test_arc_with_letters_numbers_and_other_counts(entries, tmp_path):
    rows = [("ABCD", "D"), ("1234", "2"), ("ABCDE", "E"), ("ABC", "A")]
    records = [{"id": "x", "question": "Why?", "choices": {"text": list("wxyzv"[: len(labels)]), "label": list(labels)},
                "answerKey": key} for labels, key in rows]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records).encode("utf-8")
    expected = [{"query": "Question: Why?\nAnswer:", "choices": list("wxyzv"[: len(labels)]), "gold": gold}
                for (labels, _), gold in zip(rows, (3, 1, 4, 0))]  # fmt: skip
    assert data.load(put(tmp_path, "samples/arc_easy.jsonl", lines)) == expected
    zstandard, pyarrow = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    assert data.load(put(tmp_path, "eval/arc_easy_val.jsonl.zst", zstandard.compress(lines))) == expected
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "eval" / "arc_easy_val.parquet")
    assert data.load(tmp_path / "eval" / "arc_easy_val.parquet") == expected
    with pytest.raises(ValueError, match="arc_easy.jsonl cannot be read"):  # a key that no choice has
        data.load(put(tmp_path, "samples/arc_easy.jsonl", lines.replace(b'"answerKey": "D"', b'"answerKey": "9"')))


REAL = {  # what the official files hold, or the smaller forms of them
    "sms_spam": lambda text: text.count("\n") == 5574 and text.count("\nspam\t") + text.startswith("spam") == 747,
    "instruction_data": lambda entries: len(entries) == 1100,
    "alpaca": lambda entries: len(entries) in (52_002, 5000) and set(entries[0]) == {"instruction", "input", "output"},
    "mmlu": lambda splits: {k: len(items) for k, items in splits.items()} == {"dev": 285, "val": 1531, "test": 14_042},
    "arc_easy": lambda items: len(items) == 570 and all(item["gold"] < len(item["choices"]) for item in items),
}


@pytest.mark.skipif(not MIRROR, reason="LLM_MIRROR is not set")
@pytest.mark.parametrize("name", REAL)
def test_real_files_hold_what_they_ought_to(entries, monkeypatch, name):
    monkeypatch.setenv("LLM_MIRROR", MIRROR)
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setattr(places, "SAMPLES", ROOT / "shared" / "data" / "samples")
    path = data.fetch(name)
    if places.is_sample(path):
        pytest.skip(f"the mirror has no {name}")
    assert REAL[name](data.load(path))


def test_samples_of_chapters_4_and_5(entries, monkeypatch):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setattr(places, "SAMPLES", ROOT / "shared" / "data" / "samples")
    content = {name: data.load(data.fetch(name)) for name in REAL}
    lines = content["sms_spam"].splitlines()
    assert len(lines) >= 100 and {line.split("\t")[0] for line in lines} == {"ham", "spam"}
    for entry in content["instruction_data"]:
        assert set(entry) == {"instruction", "input", "output"} and entry["instruction"] and entry["output"]
    assert content["alpaca"] == content["instruction_data"]
    mmlu = content["mmlu"]
    assert [len(mmlu[split]) for split in ("dev", "val", "test")] == [8, 0, 24]
    assert {item["subject"] for item in mmlu["dev"]} == {item["subject"] for item in mmlu["test"]}
    assert len({item["question"] for item in mmlu["dev"] + mmlu["test"]}) == 32
    assert [[item["gold"] for item in mmlu["dev"] + mmlu["test"]].count(gold) for gold in range(4)] == [8, 8, 8, 8]
    assert [[item["gold"] for item in content["arc_easy"]].count(gold) for gold in range(4)] == [6, 6, 6, 6]
    for item in mmlu["dev"] + mmlu["test"] + content["arc_easy"]:
        assert len(item["choices"]) == 4 == len(set(item["choices"]))


# --- interruptions and company ---------------------------------------------------------------------------------------

SCRIPT = """
import sys
from shared import data
from shared.data.registry import REGISTRY, Dataset
name, url, sha256, size = sys.argv[1:]
REGISTRY[name] = Dataset(
    name=name, about="", licence="", file="sub/thing.bin", size=int(size), sha256=sha256, urls=(url,))
print(data.fetch(name).read_bytes() == bytes(range(256)) * 1200)
"""


def start(url):
    command = [sys.executable, "-c", SCRIPT, "thing", url, hashlib.sha256(BODY).hexdigest(), str(len(BODY))]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_keyboard_interrupt_keeps_what_it_has(server, monkeypatch):
    add(server.serve("/a", body(BODY)))

    def interrupt(bar, n=1):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download.tqdm, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            data.fetch("thing")
    kept = cached("sub/thing.bin.part").stat().st_size
    assert not cached().exists() and 0 < kept < len(BODY)
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges == [None, f"bytes={kept}-"]


def test_killed_process_leaves_nothing_broken(server):
    hold = threading.Event()
    add(server.serve("/a", body(BODY, cut=200_000, hold=hold), body(BODY)))
    process, part = start(server.address + "/a"), cached("sub/thing.bin.part")
    deadline = time.monotonic() + 15
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    hold.set()
    assert not cached().exists() and 0 < part.stat().st_size <= 200_000
    assert data.fetch("thing").read_bytes() == BODY
    assert server.ranges[1].startswith("bytes=") and server.sent[-1] < len(BODY)
    assert left_over() == []


def test_cut_downloads_end_bit_for_bit(server):
    chance = random.Random(0)
    for name in range(20):
        content = chance.randbytes(200_000 + name)
        cuts = [body(content, cut=chance.randint(1, 60_000)) for _ in range(3)]
        add(server.serve(f"/{name}", *cuts, body(content)), content=content, name="thing", file=f"{name}.bin",
            size=name % 2)  # fmt: skip
        assert data.fetch("thing").read_bytes() == content
    assert len(server.log) == 80 and sum(server.sent) == sum(200_000 + name for name in range(20))


def test_two_threads_at_once_with_a_checksum_that_is_not_known(server):
    add(server.serve("/a", body(BODY)), sha256=False, size=False)
    found = []
    threads = [threading.Thread(target=lambda: found.append(data.fetch("thing").read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [BODY] * 4 and len(server.log) == 1 and left_over() == []


def test_two_processes_at_once_and_a_thread(server):
    hold = threading.Event()
    add(server.serve("/a", body(BODY, cut=CUT, hold=hold), body(BODY)))
    processes = [start(server.address + "/a") for _ in range(2)]
    deadline = time.monotonic() + 15
    while not server.log and time.monotonic() < deadline:
        time.sleep(0.01)
    found = []
    thread = threading.Thread(target=lambda: found.append(data.fetch("thing").read_bytes()))
    thread.start()
    time.sleep(1.5)  # all of them are at it now
    assert len(server.log) == 1
    hold.set()
    lines = [process.communicate(timeout=20)[0].splitlines()[-1] for process in processes]
    thread.join(20)
    assert lines == ["True", "True"] and found == [BODY]
    assert len(server.log) == 2 and left_over() == []  # begun, gone on with, and nobody asked a third time


# --- command line ----------------------------------------------------------------------------------------------------


def test_list(server, mirror, monkeypatch, capsys):
    for name in ("one", "two", "three", "four", "five"):
        add(
            server.serve(f"/{name}", body(BODY)), name=name, file=f"sub/{name}", sample="s" if name == "three" else None
        )
    data.fetch("one")
    (mirror / "sub/two").write_bytes(BODY)
    cached("sub/five").write_bytes(OTHER)
    capsys.readouterr()
    assert main(["--list"]) == 0
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:5] == ["name", "file", "bytes", "licence", "now"]
    assert [(row[0], row[4]) for row in rows] == [
        ("one", "cache"),
        ("two", "mirror"),
        ("three", "sample"),
        ("four", "absent"),
        ("five", "damaged"),
    ]
    assert [row[1:4] for row in rows[:1]] == [["sub/one", "307,200", "none"]]
    assert len(server.log) == 1


def test_names_and_failures(server, capsys):
    add(server.serve("/gone", status(404)), name="gone", file="gone", sample="s")
    add(server.serve("/a", body(BODY)))
    assert main(["thing"]) == 0
    assert main(["gone", "thing"]) == 1
    out = capsys.readouterr().out
    assert f"thing: {cached()}" in out and "gone could not be had" in out
    assert main(["nonsense", "thing"]) == 1
    out = capsys.readouterr().out
    assert f"thing: {cached()}" in out and "no data is called 'nonsense'" in out
    assert main([]) == 0 and "what it is" in capsys.readouterr().out  # the table


def test_make_a_mirror_from_the_network_and_from_a_mirror(server, tmp_path, monkeypatch, capsys):
    add(server.serve("/gone", status(404)), name="gone", file="gone", sample="s")
    add(server.serve("/a", body(BODY)))
    assert main(["--all", "--to", str(tmp_path / "one")]) == 1
    files = [path.relative_to(tmp_path / "one").as_posix() for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert files == ["sub/thing.bin"] and (tmp_path / "one/sub/thing.bin").read_bytes() == BODY
    monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "one"))
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    assert main(["thing", "--to", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two/sub/thing.bin").read_bytes() == BODY
    (tmp_path / "two/sub/thing.bin").write_bytes(OTHER)  # repaired when asked again
    assert main(["thing", "--to", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two/sub/thing.bin").read_bytes() == BODY
    assert main(["thing", "--to", str(tmp_path / "one")]) == 0  # onto itself
    assert (tmp_path / "one/sub/thing.bin").read_bytes() == BODY


def test_mirror_that_cannot_be_written(server, tmp_path, capsys):
    add(server.serve("/a", body(BODY)))
    (tmp_path / "file").write_bytes(b"")
    assert main(["thing", "--to", str(tmp_path / "file")]) == 1
    assert "thing cannot be copied to" in capsys.readouterr().out


def test_command_line_in_its_own_process(tmp_path):
    environment = os.environ | {"LLM_DATA_DIR": str(tmp_path), "LLM_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "shared.data"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert listed.returncode == 0 and "the_verdict" in listed.stdout and "public domain" in listed.stdout
    ordinary = sum(not entry.huge for entry in ENTRIES.values())
    failed = subprocess.run([*command, "--all"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stdout.count("could not be had") == ordinary and failed.stderr == ""


# --- the entries of the course ---------------------------------------------------------------------------------------


def test_entries_of_the_course():
    entries = list(ENTRIES.values())
    assert [entry.name for entry in entries][:3] == ["the_verdict", "gpt2_vocab", "gpt2_encoder"]
    assert len({entry.name for entry in entries}) == len(entries)
    forms = [form for entry in entries for form in entry.forms]
    assert len({form.file for form in forms}) == len(forms)
    for form in forms:
        assert all(url.startswith("https://") for url in form.urls)
        assert form.sha256 is None or len(bytes.fromhex(form.sha256)) == 32
        assert form.sha256 or form.urls  # what only mirrors hold must be known
        assert not Path(form.file).is_absolute() and ".." not in Path(form.file).parts
    for entry in entries:
        assert entry.licence and entry.about and entry.urls


@pytest.mark.skipif(not MIRROR, reason="LLM_MIRROR is not set")
def test_what_the_mirror_holds_is_right(monkeypatch):
    monkeypatch.setenv("LLM_MIRROR", MIRROR)
    monkeypatch.setenv("LLM_OFFLINE", "1")
    REGISTRY.update(ENTRIES)
    found = set()
    for entry in ENTRIES.values():
        for form in entry.forms:
            file = Path(MIRROR, form.file)
            if file.is_file():
                assert hashlib.sha256(file.read_bytes()).hexdigest() == form.sha256, file
                assert data.fetch(entry.name, sample_ok=False).is_file()
                found.add(entry.name)
    assert found >= {"the_verdict", "gpt2_vocab", "gpt2_encoder"}
    for name in found & {"lambada", "hellaswag", "wikitext2"}:
        assert data.load(data.fetch(name))


def test_bundled_samples_can_be_read(monkeypatch):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setattr(places, "SAMPLES", ROOT / "shared" / "data" / "samples")
    REGISTRY.update(ENTRIES)
    content = {entry.name: data.load(data.fetch(entry.name)) for entry in ENTRIES.values() if entry.sample}
    assert all(content.values())
    assert len(content["lambada"]) >= 30 and all(text == text.strip() and " " in text for text in content["lambada"])
    assert len(content["hellaswag"]) >= 30
    for item in content["hellaswag"]:
        assert len(item["choices"]) == 4 == len(set(item["choices"])) and 0 <= item["gold"] < 4 and item["query"]
    assert len({item["gold"] for item in content["hellaswag"]}) == 4
    assert "<unk>" not in content["wikitext2"] and " = " in content["wikitext2"]


def test_import_has_no_side_effects():
    script = """
import pathlib, os, socket, sys, threading
socket.socket.connect = None
import shared.data
assert threading.active_count() == 1 and not pathlib.Path(os.environ["LLM_DATA_DIR"]).exists()
assert not {"torch", "numpy", "pandas"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
