"""Lesson 5.5's sums: what counts as right, that no sum is in both parts, that both arms see the same, the table."""

import json
import sys
import types

import pytest

from shared.checkpoints import load_gguf
from tools.notebooks import ROOT

sys.path.insert(0, str(ROOT / "05_instruction_finetune"))

import sums_smollm2 as script  # noqa: E402


@pytest.mark.parametrize(("answer", "right"), [
    (" 41.", True), ("41", True), (" 41, or 42", True), (" 410", False), (" 42, no: 41", False), (" 4 1", False),
    (" -41", False), (" forty-one", False), (" x = 41", False), ("", False),
])  # fmt: skip
def test_the_first_number_decides(answer, right):
    assert script.is_right((11, 30), answer) is right


def test_the_reward_finds_its_sum_in_the_prompt():
    tokenizer = tiny()[1]
    prompts = [tokenizer.decode(script.prompt_of(pair, tokenizer)) for pair in ((11, 30), (30, 12))]
    assert prompts[0].endswith("11 + 30 =")
    assert script.right_number(prompts, [" 41.", " 42"]) == [1, 1]
    assert script.right_number(prompts, [" 42", " 41<|im_end|>"]) == [0, 0]


@pytest.mark.parametrize("numbers", [script.SMALL, script.LARGER])
def test_no_held_out_sum_is_trained_on_not_even_turned_round(numbers):
    training, held_out = script.sums(numbers)
    assert len(held_out) == 100 and script.sums(numbers) == (training, held_out)
    both = {frozenset(pair) for pair in training + held_out}
    n = numbers[1] - numbers[0] + 1
    assert len(both) == len(training) + 100 == n * (n - 1) // 2


def test_both_arms_meet_the_same_sums_in_the_same_order(small):
    model, tokenizer = tiny()
    asked = []

    def noted(prompts, answers):
        asked.extend(prompts)
        return [0.0] * len(answers)

    prompts = [small.prompt_of(pair, tokenizer) for pair in small.sums()[0]]
    small.train_for_reward(model, tokenizer, prompts, noted, small.REWARD, seed=1, stop_id=tokenizer.end_of_turn)
    shown = [tokenizer.decode(ids[~is_answer].tolist()) for ids, is_answer in small.shown_items(tokenizer, 1)]
    assert asked[:: small.REWARD["n"]] == shown
    for (ids, is_answer), prompt in zip(small.shown_items(tokenizer, 1), shown, strict=True):
        answer = tokenizer.decode(ids[is_answer].tolist())
        assert small.right_number([prompt], [answer]) == [1] and answer.endswith("<|im_end|>")


def tiny():
    return load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf")


@pytest.fixture
def small(monkeypatch):
    """The script with runs of a second, on the stand-in."""
    monkeypatch.setenv("LLM_DTYPE", "float32")
    reward = script.REWARD | {"steps": 1, "n_prompts": 2, "n": 2, "max_new_tokens": 4}
    training, held_out = script.sums()
    for name, value in {"REWARD": reward, "ARMS": {"reward": reward, "shown": script.SHOWN}, "DRAWN": 2,
                        "sums": lambda numbers=None: (training, held_out[:3]), "QUESTIONS": script.QUESTIONS[:26],
                        "load_base": lambda name: tiny()}.items():  # fmt: skip
        monkeypatch.setattr(script, name, value)
    return script


def test_the_script_makes_a_table_and_goes_on_with_it(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table.json"
    assert small.main(["--out", str(out), "--seeds", "1"]) == 0
    rows = {row["arm"]: row for row in json.loads(out.read_text(encoding="utf-8"))["runs"]}
    assert set(rows) == {"as it came", "reward", "shown"} and len(rows["reward"]["history"]["reward"]) == 1
    assert all(len(row["texts"]) == 3 and len(row["right_of_eight_drawn"]) == 2 for row in rows.values())
    assert all(len(row["larger"]) == 3 and len(row["questions"]) == 2 for row in rows.values())
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
    assert table["arms"] == script.ARMS and table["numbers"] == [[*script.SMALL], [*script.LARGER]]
    assert [(row["arm"], row["seed"]) for row in table["runs"]] == [
        ("as it came", None), *((arm, seed) for seed in range(3) for arm in script.ARMS)]
    assert all(row["base"].startswith("SmolLM2-135M-Instruct") and len(row["texts"]) == 100 for row in table["runs"])
