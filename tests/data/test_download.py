"""`shared/data/download.py` and `network.py`: a server that does everything wrong, interruptions, company."""

import email.utils
import gzip
import hashlib
import random
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import urllib3

from shared import data
from shared.data import download, network, places
from shared.data.registry import REGISTRY
from tests.data.made_up import BODY, CUT, OTHER, ROOT, add, body, cached, encoded, endless, left_over, silent, status

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


@pytest.mark.parametrize("after", ["3600", "9" * 400, email.utils.formatdate(4e9)])
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


@pytest.mark.parametrize("to", ["http://[::1", "file:///etc/passwd", "http://a..b"])
def test_redirect_that_leads_nowhere(server, to):
    add(server.serve("/a", lambda handler: moved(handler, to)))
    with pytest.raises(data.DownloadError, match="this address cannot be asked"):
        data.fetch("thing")


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


@pytest.mark.parametrize("mirror", ["http://[::1", "~nobody-of-this-name/data"])
def test_mirror_that_cannot_be_taken_apart(server, monkeypatch, capsys, mirror):
    monkeypatch.setenv("LLM_MIRROR", mirror)
    add(server.serve("/a", body(BODY)))
    assert data.fetch("thing").read_bytes() == BODY
    assert "going on without a mirror" in capsys.readouterr().out


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
