"""`05_instruction_finetune/benchmarks.py`: the table, resumed and renewed; our scores beside those of transformers."""

import importlib.util
import json
from pathlib import Path

import pytest

from shared import data
from shared.checkpoints import COURSE_BASE
from shared.metrics import wilson

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "05_instruction_finetune" / "benchmarks.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmarks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Bundled samples only, SmolLM2's stand-in among them."""
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setenv("LLM_MIRROR", "")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    assert data.places.is_sample(data.fetch("smollm2"))


def rows_of(out):
    return {(row["model"], row["benchmark"]): row for row in json.loads(out.read_text())["runs"]}


def test_table_is_made_continued_and_renewed(script, offline, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert script.main(["smollm2", "--items", "8", "--only", "a", "--out", str(out)]) == 0  # not BLiMP
    first = rows_of(out)
    assert set(first) == {("smollm2-tiny", name) for name in ("HellaSwag", "PIQA", "ARC-Easy", "LAMBADA")}
    assert script.main(["smollm2", "--items", "8", "--out", str(out)]) == 0
    assert rows_of(out) == first | {("smollm2-tiny", "BLiMP"): rows_of(out)["smollm2-tiny", "BLiMP"]}
    nine = ["smollm2", "--items", "9", "--only", "piqa", "--out", str(out)]
    assert script.main(nine) == 1 and rows_of(out)["smollm2-tiny", "PIQA"]["n"] == 8, "a row is not written over"
    assert script.main([*nine, "--again"]) == 0
    rows = rows_of(out)
    assert rows["smollm2-tiny", "PIQA"]["n"] == 9 and len(rows) == 5
    for row in rows.values():
        assert row["bundled_sample"] and len(row["answers"]) == row["n"] and set(row["answers"]) <= {"0", "1"}
        assert row["answers"].count("1") in row["right"].values()
    grammar = rows["smollm2-tiny", "BLiMP"]
    assert grammar["n"] == 10 == sum(n for _, n in grammar["phenomena"].values())
    assert capsys.readouterr().out.count("smollm2-tiny   ") == 6


def test_a_folder_that_is_not_there(script, offline, tmp_path, capsys):
    assert script.main([str(tmp_path / "none"), "--out", str(tmp_path / "table.json")]) == 1
    assert "none" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["smollm2", COURSE_BASE], ids=["llama", "gpt"])
def test_our_answers_are_those_of_transformers(script, offline, model):
    all_of_them = (12, 12)
    assert script.check(model, n=12) == dict.fromkeys(("ARC-Easy by sum", "ARC-Easy by byte", "LAMBADA"), all_of_them)


def test_saved_table_is_whole():
    table = json.loads((SCRIPT.parent / "benchmarks.json").read_text())
    rows = {(row["model"], row["benchmark"]): row for row in table["runs"]}
    assert len(rows) == len(table["runs"])
    for name in ("BLiMP", "HellaSwag", "PIQA", "ARC-Easy", "LAMBADA"):
        same = [row for (_, benchmark), row in rows.items() if benchmark == name]
        assert len(same) >= 3 and len({row["items"] for row in same}) == 1
        assert not any(row["bundled_sample"] for row in same)
        assert all(row["n"] >= 500 and len(row["answers"]) == row["n"] for row in same)
    for name, published in table["card"].items():  # the makers' figures lie inside our intervals
        row = rows["SmolLM2-135M-Instruct.Q4_1", name]
        low, high = wilson(row["right"]["byte"], row["n"])
        assert low < published < high, name
