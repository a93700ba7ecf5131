"""`shared/files.py`: a file is at every moment the old one or the new one."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.files import continue_table, read_json, sha256_of, write_atomically, write_table

ROOT = Path(__file__).resolve().parents[1]


def test_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"one" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"one" * 100_000).hexdigest()


def test_new_file_is_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with write_atomically(path) as part:
        part.write_text("ne")
        assert path.read_text() == "old" and part.parent == tmp_path
        with open(part, "a") as file:
            file.write("w")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_old_file_stays_where_writing_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), write_atomically(path) as part:
        part.write_text("half of the n")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["no/a.txt", "file/a.txt", "folder"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=rf"^\[Errno \d+\] .*: '{tmp_path / name}'$"):
        with write_atomically(tmp_path / name) as part:
            part.write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == []


def test_a_full_disk_is_named_and_errors_of_other_files_stay_as_they_are(tmp_path):
    with pytest.raises(OSError, match=rf"^\[Errno 28\] No space left on device: '{tmp_path / 'a.txt'}'$"):
        with write_atomically(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError, match="another.txt'$"), write_atomically(tmp_path / "a.txt"):
        (tmp_path / "another.txt").read_text()
    assert os.listdir(tmp_path) == []


def test_nothing_written_is_an_error_and_no_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = f"""
import os
from shared.files import write_atomically
with write_atomically({str(path)!r}) as part:
    part.write_text("half of what a killed process wrote")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -9
    assert path.read_text() == "old" and len(os.listdir(tmp_path)) == 2
    with write_atomically(path) as part, open(part, "a") as file:
        file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("end", ["", ".part"])
def test_links_are_replaced_and_never_followed(tmp_path, link, end):
    mine, path = tmp_path / "mine.txt", tmp_path / "a.txt"
    mine.write_text("mine")
    link(mine, f"{path}{end}")
    with write_atomically(path) as part, open(part, "a") as file:
        file.write("new")
    assert path.read_text() == "new" and mine.read_text() == "mine" and not path.is_symlink()



@pytest.mark.parametrize(("content", "message"), [
    (b"[]", "it holds a list, not an object"), (b"{", "Expecting property name"), (b"\xff", "'utf-8' codec"),
    (b'{"a": "b"}', "'a' is 'b', not of type int"), (b"[" * 100_000, "recursion"),
])  # fmt: skip
def test_damaged_json_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is damaged: .*{message}"):
        read_json(path, int)
    path.write_bytes(b'\xef\xbb\xbf{"a": 3}')
    assert read_json(path, int) == {"a": 3}


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
@pytest.mark.parametrize("command", [["shared.data", "--list"], ["shared.checkpoints", "shared/course_base"]])
def test_a_command_ends_quietly_where_nobody_reads_on(command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_table_goes_on_only_under_its_own_conditions(tmp_path):
    out = tmp_path / "table.json"
    assert continue_table(out, {"data": 1}) == []
    out.write_text('{"data": 1, "runs": [{"seed": 0}]}', encoding="utf-8")
    assert continue_table(out, {"data": 1}) == [{"seed": 0}]
    for text in ('{"data": 2, "runs": []}', '{"data": 1}', '{"mine": [1, 2]}', '{"data": 1, "runs": {}}'):
        out.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="table.json is another table.*--out"):
            continue_table(out, {"data": 1})
        assert out.read_text(encoding="utf-8") == text
    for text in ("", '{"data": 1, "ru', "[1]"):
        out.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="table.json is damaged"):
            continue_table(out, {"data": 1})
    for place in (tmp_path, tmp_path / "not there" / "table.json"):
        with pytest.raises(ValueError, match="is no file that can be written"):
            continue_table(place, {})


@pytest.mark.parametrize("name", ["runs", "rows"])
def test_a_written_table_has_a_row_on_each_line(tmp_path, name):
    table = {"made": {"date": "2026-11-27", "lists": []}, name: [{"seed": 0, "text": '"runs": []'}, {"text": "né"}]}
    write_table(tmp_path / "table.json", table, name)
    assert read_json(tmp_path / "table.json") == table
    assert continue_table(tmp_path / "table.json", {}, name) == table[name]
    lines = (tmp_path / "table.json").read_text(encoding="utf-8").split("\n")
    assert sum(line.startswith('  {"') for line in lines) == 2
    write_table(tmp_path / "table.json", table | {name: []}, name)
    assert read_json(tmp_path / "table.json")[name] == []


def test_a_table_has_one_writer(tmp_path):
    out = tmp_path / "table.json"
    assert continue_table(out, {}) == [] == continue_table(out, {}), "the same program may ask again"
    code = "import sys; from shared.files import continue_table; continue_table(sys.argv[1], {})"
    other = subprocess.run([sys.executable, "-c", code, out], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 1 and "another program is writing" in other.stderr
