"""Lesson 5.5's sums: what counts as right, that no sum is in both parts, and the script that makes the table."""

import json
import sys
import types

import pytest

from shared.checkpoints import load_gguf
from tools.notebooks import ROOT

sys.path.insert(0, str(ROOT / "05_instruction_finetune"))

import sums_smollm2 as script  # noqa: E402


@pytest.mark.parametrize(("answer", "right"), [
    ("11 + 30 = 41.", True), ("41", True), ("It is 41, I think", True), ("1,041", False), ("41, no: 31", False),
    ("11 + 30", False), ("11 + 30 = 41\n\n2.", False), ("4 1", False), ("forty-one", False), ("", False),
])  # fmt: skip
def test_the_last_number_decides(answer, right):
    assert script.is_right((11, 30), answer) is right


def test_a_thousand_may_have_its_comma():
    assert script.is_right((1000, 41), "1,041") and script.is_right((1000, 41), "1041")


def test_the_reward_asks_for_the_right_number_and_for_an_end():
    prompt = "<|im_start|>user\n" + script.ASKED.format(11, 30) + "<|im_end|>\n<|im_start|>assistant\n"
    answers = ["41.<|im_end|>", "41.", "40.<|im_end|>", "<|im_end|>"]
    assert script.right_and_finished([prompt] * 4, answers) == [1, 0, 0, 0]


def test_no_held_out_sum_is_trained_on_not_even_turned_round():
    training, held_out = script.sums()
    assert len(held_out) == 100 and len(training) == 306 and script.sums() == (training, held_out)
    assert not {frozenset(pair) for pair in training} & {frozenset(pair) for pair in held_out}
    assert all(script.is_right(pair, script.entry(pair)["output"]) for pair in training)


def tiny():
    return load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf")


@pytest.fixture
def small(monkeypatch):
    """The script with runs of a second, on the stand-in."""
    monkeypatch.setenv("LLM_DTYPE", "float32")
    reward = script.REWARD | {"steps": 1, "n_prompts": 2, "n": 2, "max_new_tokens": 4}
    training, held_out = script.sums()
    for name, value in {"REWARD": reward, "ARMS": {"reward": reward, "shown": script.SHOWN}, "DRAWN": 2,
                        "sums": lambda: (training, held_out[:3]), "QUESTIONS": script.QUESTIONS[:26],
                        "load_base": lambda name: tiny()}.items():  # fmt: skip
        monkeypatch.setattr(script, name, value)
    return script


def test_the_script_makes_a_table_and_goes_on_with_it(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table.json"
    assert small.main(["--out", str(out), "--seeds", "1"]) == 0
    rows = {row["arm"]: row for row in json.loads(out.read_text(encoding="utf-8"))["runs"]}
    assert set(rows) == {"as it came", "reward", "shown"} and len(rows["reward"]["history"]["reward"]) == 1
    assert all(len(row["texts"]) == 3 and len(row["right_of_eight_drawn"]) == 2 for row in rows.values())
    before = out.read_bytes()
    capsys.readouterr()
    assert small.main(["--out", str(out), "--seeds", "1"]) == 0  # nothing is left to do
    assert out.read_bytes() == before and capsys.readouterr().out == ""
    monkeypatch.setattr(small, "load_base", lambda name: (tiny()[0], types.SimpleNamespace(name="another")))
    with pytest.raises(SystemExit):
        small.main(["--out", str(out), "--seeds", "1"])
    assert "holds runs of smollm2-tiny, and here is another" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        small.main(["--out", str(out), "--seeds", "0"])


def test_the_saved_table_is_that_of_the_script():
    table = json.loads(script.OUT.read_text(encoding="utf-8"))
    assert table["arms"] == script.ARMS and table["words"] == [script.ASKED, script.OTHER]
    assert [(row["arm"], row["seed"]) for row in table["runs"]] == [
        ("as it came", None), *((arm, seed) for seed in range(3) for arm in script.ARMS)]
    assert all(row["base"].startswith("SmolLM2-135M-Instruct") and len(row["texts"]) == 100 for row in table["runs"])
