"""`05_instruction_finetune/lora_smollm2.py` on the tiny stand-in: every task once, going on, and the saved table."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch

from shared import data
from shared.checkpoints import load_gguf
from shared.lora import LoRALinear, adapters_of, count_trainable
from shared.nf4 import Linear4bit
from shared.training import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "05_instruction_finetune"))

import lora_smollm2 as script  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")
    monkeypatch.setenv("LLM_DEVICE", "cpu")
    monkeypatch.delenv("LLM_SCALE", raising=False)
    monkeypatch.setattr(script, "load_base", lambda which: load_gguf(data.places.SAMPLES / "smollm2-tiny.gguf")
                        if which == "smollm2" else real_base(which))  # fmt: skip
    monkeypatch.setattr(script, "METHODS", {name: {**one, **({"rank": min(8, one["rank"])} if "rank" in one else {})}
                                            for name, one in script.METHODS.items()})  # fmt: skip


real_base = script.load_base


@pytest.fixture
def model():
    return load_gguf(data.places.SAMPLES / "smollm2-tiny.gguf")[0]


def test_each_method_trains_what_its_name_says(model):
    everything = count_trainable(script.prepared(model, **script.METHODS["full"]))
    assert everything == sum(p.numel() for p in model.parameters())
    four = script.prepared(model, **script.METHODS["QLoRA r=8"])
    adapters = adapters_of(four)
    assert all(isinstance(a.base, Linear4bit) and a.alpha == 2 * len(a.A) for a in adapters.values())
    assert count_trainable(four) == sum(a.A.numel() + a.B.numel() for a in adapters.values()) < everything


def test_query_and_value_only(model):
    names = adapters_of(script.prepared(model, **script.METHODS["LoRA q, v r=8"]))
    assert {name.rsplit(".", 1)[1] for name in names} == {"query", "value"}


def test_bytes_are_those_of_the_tensors(model):
    model.requires_grad_(False)
    model.blocks[0].attention.query = LoRALinear(model.blocks[0].attention.query, 2, 4)
    trained = count_trainable(model)
    optimizer = make_optimizer(model, 1e-3, 0.0)
    batch = script.batch_for_cost(load_gguf(data.places.SAMPLES / "smollm2-tiny.gguf")[1])
    script.one_step(model, optimizer, batch)
    found = script.tensor_bytes(model, optimizer)
    assert found["gradients"] == 4 * trained and found["optimizer"] == 8 * trained
    assert found["weights"] == 4 * sum(p.numel() for p in model.parameters())  # a tied head once


@pytest.mark.parametrize(("task", "run", "method"), [
    ("families", "run_families", "LoRA r=8"), ("families", "run_families", "QLoRA r=8"),
    ("families", "run_families", "as it came"), ("spam", "run_spam", "LoRA r=8"), ("spam", "run_spam", "head only"),
])
def test_a_row_holds_what_the_lesson_reads(task, run, method):
    row = getattr(script, run)(method, 0, tiny=True)
    assert len(row["right"]) == row["n"] and sum(row["right"]) == row["exact"]
    assert ("trained" in row) == (method != "as it came")
    json.dumps(row)


def test_alpaca_reports_the_loss_before_and_after():
    row = script.run_alpaca("LoRA r=8", 0, tiny=True)
    low, high = row["difference_interval"]
    assert low <= row["after"] - row["before"] <= high and row["n"] > 0 and row["items"] > 0


def test_the_command_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    out, ran = tmp_path / "table.json", []

    def fake(method, seed, tiny):
        ran.append((method, seed))
        return {"exact": 1, "n": 2}

    for name in ("run_spam", "run_alpaca"):
        monkeypatch.setattr(script, name, fake)
    monkeypatch.setattr(script, "run_families", lambda method, seed, tiny: fake(method, seed, tiny) | {
        "settings": script.METHODS.get(method)})  # fmt: skip
    monkeypatch.setattr(script, "run_cost", lambda rounds: {"methods": {}})
    assert script.main(["--tiny", "--seeds", "1", "--out", str(out), "--runs", "3"]) == 0
    assert len(json.loads(out.read_text())["runs"]) == 3
    assert script.main(["--tiny", "--seeds", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["runs"]
    assert len(rows) == 2 + len(script.METHODS) + len(script.SPAM) + 1 == len(ran) + 1
    before = len(ran)
    assert script.main(["--tiny", "--seeds", "1", "--out", str(out)]) == 0 and len(ran) == before
    assert script.main(["--tiny", "--seeds", "2", "--only", "families", "--out", str(out)]) == 0
    assert ran[before:] == [("full", 1), ("LoRA r=8", 1)]
    assert all({"date", "machine", "threads", "seconds"} <= row.keys() for row in rows)
    monkeypatch.setitem(script.METHODS, "LoRA r=8", {"rank": 4, "lr": 1e-3})
    with pytest.raises(SystemExit):
        script.main(["--tiny", "--seeds", "3", "--only", "families", "--out", str(out)])
    assert "families, LoRA r=8, with {'rank': 8, 'lr': 0.001}, here {'rank': 4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["--out", str(out)])  # a tiny table is no table
    assert "another table" in capsys.readouterr().err


# The saved table.

TABLE = json.loads((ROOT / "05_instruction_finetune" / "lora_smollm2.json").read_text(encoding="utf-8"))


def rows(task, method=None):
    return [row for row in TABLE["runs"] if row["task"] == task and method in (None, row["method"])]


def test_the_saved_table_keeps_what_the_lesson_promises():
    methods = rows("cost")[0]["methods"]
    seconds = {name: statistics.median(one["seconds"]) for name, one in methods.items()}
    assert seconds["full"] >= 1.15 * seconds["LoRA r=8"]
    assert methods["LoRA r=8"]["peak"] < methods["full"]["peak"]
    assert rows("families", "LoRA r=8")[0]["trained"] < 0.02 * rows("families", "LoRA r=8")[0]["parameters"]
    assert not TABLE["tiny"] and {row["method"] for row in rows("families")} == {*real_methods(), script.AS_IT_CAME}
    for method in script.TWO_SEEDS:
        assert {row["seed"] for row in rows("families", method)} >= {0, 1}
    for row in rows("families") + rows("spam"):
        assert sum(row["right"]) == row["exact"] and len(row["right"]) == row["n"]


def real_methods():
    return ("full", "LoRA r=8", "QLoRA r=8", "LoRA q, v r=8", "LoRA r=1", "LoRA r=4", "LoRA r=16")


def test_all_runs_answered_the_same_items():
    assert len({(row["data"], row["base"]) for row in rows("families")}) == 1
    assert len({row["data"] for row in rows("spam")}) == 1
    assert torch.tensor([row["n"] for row in rows("families")]).unique().numel() == 1
