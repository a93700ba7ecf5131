"""`shared/data/registry.py`, the bundled samples and `python -m shared.data`."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared import data
from shared.data import places
from shared.data.__main__ import main
from shared.data.registry import REGISTRY
from tests.data.made_up import BODY, ENTRIES, MIRROR, OTHER, ROOT, add, body, cached, status

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


def test_imports_run_downward():
    """Each module imports only what stands before it in the list in the docstring of `shared.data`, which is whole."""
    package = ROOT / "shared/data"
    order = re.findall(r"^    (\w+) {3,}", data.__doc__, re.MULTILINE)
    assert sorted([*order, "__init__", "__main__"]) == sorted(path.stem for path in package.glob("*.py"))
    for number, name in enumerate(order):
        found = re.findall(r"^from shared\.?(\S*) import (.+)", (package / f"{name}.py").read_text(), re.MULTILINE)
        for module, names in found:
            used = names.split(", ") if module == "data" else [module.removeprefix("data.")]
            assert module == "files" or set(used) <= set(order[:number]), f"{name} imports {used}"


def test_import_has_no_side_effects():
    script = """
import pathlib, os, socket, sys, threading
socket.socket.connect = None
import shared.data
assert threading.active_count() == 1 and not pathlib.Path(os.environ["LLM_DATA_DIR"]).exists()
assert not {"torch", "numpy", "pandas"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


REAL = {  # what the official files hold, or the smaller forms of them
    "sms_spam": lambda text: text.count("\n") == 5574 and text.count("\nspam\t") + text.startswith("spam") == 747,
    "instruction_data": lambda entries: len(entries) == 1100,
    "alpaca": lambda entries: len(entries) in (52_002, 5000) and set(entries[0]) == {"instruction", "input", "output"},
    "mmlu": lambda splits: {k: len(items) for k, items in splits.items()} == {"dev": 285, "val": 1531, "test": 14_042},
    "arc_easy": lambda items: len(items) == 570 and all(item["gold"] < len(item["choices"]) for item in items),
    "piqa": lambda items: len(items) == 1838 and {item["gold"] for item in items} == {0, 1},
    "blimp": lambda pairs: len(pairs) == 67_000 and len({pair["phenomenon"] for pair in pairs}) == 12
    and all(len({pair["paradigm"] for pair in pairs[67 * i : 67 * (i + 1)]}) == 67 for i in range(1000)),
    "oasst1": lambda records: len(records) > 100 and all(len(record["messages"]) >= 1 for record in records),
    "topical_chat": lambda records: len(records) == 539,
    "taskmaster": lambda records: len(records) > 400,
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
    assert [[item["gold"] for item in content["piqa"]].count(gold) for gold in range(2)] == [12, 12]
    assert all(len(item["choices"]) == 2 == len(set(item["choices"])) for item in content["piqa"])
    assert content["oasst1"] == content["topical_chat"] != content["taskmaster"]
    assert len(content["oasst1"]) == len(content["taskmaster"]) == 120
    pairs = content["blimp"]
    assert len(pairs) == 40 == len({pair["good"] for pair in pairs}) and all(p["good"] != p["bad"] for p in pairs)
    assert len({pair["paradigm"] for pair in pairs[:10]}) == 10 and len({pair["phenomenon"] for pair in pairs}) == 9


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder's name is always text")
def test_a_folder_whose_name_is_no_text(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    environment = os.environ | {"LLM_DATA_DIR": folder, "LLM_OFFLINE": "1", "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "shared.data", "gpt2_weights"]
    done = subprocess.run(command, cwd=ROOT, env=environment | {"LLM_MIRROR": ""}, capture_output=True)
    assert done.returncode == 1 and done.stderr == b"" and b"caf\\udce9" in done.stdout


def test_the_table_of_which_only_the_first_line_is_read():
    """As by `| head -1`, which then closes its end."""
    process = subprocess.Popen([sys.executable, "-m", "shared.data"], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline().startswith(b"name ")
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(30) == 0
    process.stderr.close()


def test_ctrl_c_says_that_what_came_is_kept(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.data.__main__.fetch", interrupted)
    assert main(["the_verdict"]) == 130
    assert capsys.readouterr().out == "\ninterrupted; what has come so far is kept\n"


def test_command_line_in_its_own_process(tmp_path):
    environment = os.environ | {"LLM_DATA_DIR": str(tmp_path), "LLM_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "shared.data"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert listed.returncode == 0 and "the_verdict" in listed.stdout and "public domain" in listed.stdout
    ordinary = sum(not entry.huge for entry in ENTRIES.values())
    failed = subprocess.run([*command, "--all"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stdout.count("could not be had") == ordinary and failed.stderr == ""
