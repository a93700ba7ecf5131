"""`shared/data/cache.py`, `checks.py`, `places.py`: the cache, mirrors, samples, several forms, what is not right."""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from shared import data
from shared.data import checks, download, formats, places
from shared.data.__main__ import main
from shared.data.registry import REGISTRY, Form
from tests.data.made_up import BODY, CUT, LINES, OTHER, ROOT, add, body, cached, left_over, put, status, words

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


def test_checksum_is_recorded_by_one_thread_while_the_others_wait(server, monkeypatch):
    add(server.serve("/a", body(BODY)), sha256=False, size=False)
    write, written = checks._write, []

    def slowly(path, text):
        time.sleep(0.2)
        written.append(path.name)
        write(path, text)

    monkeypatch.setattr(checks, "_write", slowly)
    threads = [threading.Thread(target=data.fetch, args=("thing",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert written == ["thing.bin.sha256"]


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


def whole(path):
    if path.read_bytes() != BODY:
        raise ValueError("it is another")


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
    packed = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [f"line {i}\n" for i in range(1000)]}), packed)
    whole = packed.getvalue()
    urls = (server.serve("/a", body(whole[:-8], ranges=False)), server.serve("/b", body(whole)))
    entries["wikitext2"] = replace(entries["wikitext2"], size=None, urls=urls, others=(), sample=None)
    file = put(tmp_path, "stick/eval/wikitext2_raw_test.parquet", whole[:2000])
    monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "stick"))
    assert data.fetch("wikitext2").read_bytes() == whole
    assert f"{file} cannot be read" in capsys.readouterr().out and len(server.log) == 2


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


# --- mirror, sample, offline -----------------------------------------------------------------------------------------


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
    monkeypatch.setenv("LLM_DATA_DIR", "~nobody-of-this-name/data")  # taken as it stands, as a shell does
    assert places.data_dir() == ROOT / "~nobody-of-this-name/data"
    monkeypatch.delenv("LLM_DATA_DIR")
    assert places.data_dir() == ROOT / "data"


# --- several forms of the same data ----------------------------------------------------------------------------------

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


def test_load_is_fetch_and_the_reader_of_whichever_form_came(server, capsys):
    _, plain = add_forms(server.address, sample="few.jsonl")
    put(places.SAMPLES, "few.jsonl", LINES[: LINES.index(b"\n")])
    assert data.load("thing") == ["one"] == data.load(places.SAMPLES / "few.jsonl")
    assert capsys.readouterr().out.count("using the bundled sample few.jsonl") == 1
    server.serve("/plain", body(plain))
    assert data.load("thing") == ["one", "two"] == data.load(cached("plain.txt"))
    server.serve("/lines", body(LINES))
    cached("plain.txt").unlink()
    assert data.load("thing") == ["one", "two"] and cached("sub/lines.jsonl").is_file()
    with pytest.raises(ValueError, match="'thin'; did you mean thing"):
        data.load("thin")


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
