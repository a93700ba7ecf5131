"""`shared/data/formats.py`: entries, such as instructions with answers, in a JSON list or as JSON lines."""

import gzip
import json
import random
import tracemalloc

import pytest
import zstandard

from shared.data.formats import read_entries

ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
    {"instruction": "Say\nit in two lines.", "input": 'naïve "漢字" {x} \\', "output": "One.\nTwo \U0001f600."},
]


def write(path, text):
    """`text` in a file, packed as its name says."""
    raw = text.encode("utf-8")
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        raw = zstandard.ZstdCompressor().compress(raw)
    path.write_bytes(raw)
    return path


def as_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "text"), [
    ("a.json", json.dumps(ROWS)), ("a.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
    ("a.json", "\n \n" + json.dumps(ROWS, indent=0)), ("a.jsonl", as_lines(ROWS)), ("a.jsonl", as_lines(ROWS).rstrip()),
    ("a.jsonl", "\n\n" + as_lines(ROWS).replace("\n", "\n\n \n")), ("a.jsonl", as_lines(ROWS).replace("\n", "\r\n")),
], ids=["one line", "indented", "blank before", "lines", "no last feed", "blank lines", "CRLF"])  # fmt: skip
def test_both_forms_of_json_are_read(tmp_path, name, text, packed):
    path = write(tmp_path / (name + packed), text)
    assert read_entries(path) == ROWS == read_entries(str(path))


def test_rows_are_not_checked_while_they_are_read(tmp_path):
    rows = [{"output": 3}, {}, {"instruction": None}]
    assert read_entries(write(tmp_path / "a.jsonl", as_lines(rows))) == rows
    assert read_entries(write(tmp_path / "a.json", json.dumps([*rows, 5, None]))) == [*rows, 5, None]
    assert read_entries(write(tmp_path / "b.jsonl", as_lines([{"a": 1}]) + "5\n[]\n")) == [{"a": 1}, 5, []]


def test_one_object_in_one_line_is_a_row_and_over_many_lines_an_error(tmp_path):
    assert read_entries(write(tmp_path / "a.json", json.dumps(ROWS[0]))) == ROWS[:1]
    whole = write(tmp_path / "b.json", json.dumps({"data": ROWS}))
    assert read_entries(whole) == [{"data": ROWS}]
    path = write(tmp_path / "c.json", json.dumps({"data": ROWS}, indent=2))
    with pytest.raises(ValueError, match=r"c\.json: it holds one dict, not a list of entries"):
        read_entries(path)


@pytest.mark.parametrize(("text", "kind"), [('"a"', "str"), ("7", "int"), ("null", "NoneType")])
def test_other_json_is_no_list(tmp_path, text, kind):
    with pytest.raises(ValueError, match=f"it holds one {kind}, not a list"):
        read_entries(write(tmp_path / "a.json", text))


@pytest.mark.parametrize(("text", "where"), [
    ('[\n {"a": 1},\n {"a" 2}\n]', "line 3, column 7: "),
    ('\n\n[\n {"a": 1},\n {"a" 2}\n]', "line 5, column 7: "),
    ('[{"a": 1}', "line 1, column 10: "),
    ('[{"a": 1}]\n[{"a": 1}]', "line 2, column 1: Extra data"),
    ('{"a": 1}\n{"a": 2}\n{"a" 3}\n{"a": 4}\n', "line 3, column 6: "),
    ('\n{"a": 1}\n\n{"a" 3}\n', "line 4, column 6: "),
    ('{"a": 1}\n{"a": "cut of', "line 2, column 7: "),
    ('{"a" 1}\n{"a": 2}\n', "line 1, column 6: "),
    ('\n\n{\n "a" 1}\n', "line 4, column 6: "),
    ("instruction,input,output\n", "line 1, column 1: "),
])  # fmt: skip
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_invalid_json_is_named_with_file_line_and_column(tmp_path, text, where, packed):
    path = write(tmp_path / f"mine.json{packed}", text)
    with pytest.raises(ValueError) as caught:
        read_entries(path)
    assert str(caught.value).startswith(f"{path}: {where}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n \n\t"])
def test_empty_file(tmp_path, text):
    with pytest.raises(ValueError, match=r"a\.json: the file is empty"):
        read_entries(write(tmp_path / "a.json", text))


def test_empty_list_and_no_such_file(tmp_path):
    assert read_entries(write(tmp_path / "a.json", "[]")) == []
    with pytest.raises(FileNotFoundError):
        read_entries(tmp_path / "none.json")


def test_file_that_is_no_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"instruction": "caf\xe9"}]')
    with pytest.raises(ValueError, match=r"a\.json: it is not UTF-8 \(byte 0xe9\)"):
        read_entries(tmp_path / "a.json")


def test_packed_file_that_was_cut_off(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", as_lines(ROWS * 50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: .*Compressed file ended"):
        read_entries(path)


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_huge_file_of_lines_is_never_held_as_text(tmp_path, packed):
    chance = random.Random(0)
    rows = [{"instruction": chance.randbytes(200).hex(), "input": "", "output": "y" * 100} for _ in range(10_000)]
    path = write(tmp_path / f"a.jsonl{packed}", as_lines(rows))  # 5 MB
    del rows
    tracemalloc.start()
    rows = read_entries(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 10_000 and held > 5_000_000
    assert peak - held < 1_000_000


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_entry(tmp_path, name, packed):
    text = as_lines(ROWS) if name.endswith("l") else json.dumps(ROWS)
    assert read_entries(write(tmp_path / f"{name}{packed}", "\ufeff" + text)) == ROWS


@pytest.mark.parametrize(("text", "where"), [
    ("[" * 10**5, ""), ('{"a": 1}\n' + '{"a":' * 10**5, "line 2: "), ('{"a":' * 10**5, ""),
])  # fmt: skip
def test_json_nested_too_deeply_is_named(tmp_path, text, where):
    with pytest.raises(ValueError, match=f"a.json: {where}its lists and objects are nested too deeply"):
        read_entries(write(tmp_path / "a.json", text))
