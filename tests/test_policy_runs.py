"""Lesson 5.5's rewards, its reward model, and the script that makes its table."""

import importlib.util
import json
import sys
import types

import pytest

from shared.checkpoints import COURSE_BASE, load_base, load_gguf
from tools.notebooks import ROOT

SCRIPT = ROOT / "05_instruction_finetune" / "policy_runs.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("policy_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_the_first_reward_pays_for_a_dot_and_the_second_does_not(script):
    answers = [".", " went home.", " went", " a b c d e f g h i.", " went to the old house."]
    assert script.ends_soon(None, answers) == [1, 1, 0, 0, 1]
    assert script.short_sentence(None, answers) == [0, 0, 0, 0, 1]


def test_unknown_and_repeated_words_cost_their_share(script):
    assert script.short_sentence(None, [" went to the glorblax.", " the the the the."]) == [0.75, 0.25]
    assert {"the", "house", "water"} <= script.known_words() and "glorblax" not in script.known_words()


def test_equal_answers_share_what_one_of_them_earns(script):
    assert script.various(None, [".", " ran.", ".", " and", "."]) == [1 / 3, 1, 1 / 3, 0, 1 / 3]


def test_no_opening_is_in_both_parts_and_no_question_either(script):
    assert not set(script.TRAINING) & set(script.HELD_OUT) and len(script.OPENINGS) == 64
    questions = [question for question, _ in script.QUESTIONS]
    assert len(set(questions)) == len(questions) == 64 and all(question.endswith("?") for question in questions)


def test_brief_answers_are_finished_and_have_twelve_words_at_most(script):
    said = ["Madrid.<|im_end|>", "Madrid.", "word " * 12 + "<|im_end|>", "word " * 13 + "<|im_end|>"]
    assert script.brief(None, said) == [1, 0, 0, 0] and script.brief(None, ["w " * 11 + "w<|im_end|>"]) == [1]


def test_the_judge_prefers_what_it_learned_to_prefer(script, monkeypatch):
    """Here that is the longer text: the comparisons are made so."""
    model, tokenizer = load_base(COURSE_BASE)
    long, short = " went to the old house by the river.", " sat."
    monkeypatch.setattr(script, "comparisons", lambda *_: [(f"The man{long}", f"The man{short}")] * 40)
    scores, right, shorter = script.train_judge(model, tokenizer, 0, n_pairs=32, held_out=8)
    assert right == 1 and shorter == 0
    found = scores(["She", "She"], [long, short])
    assert found.shape == (2,) and found[0] > found[1]


@pytest.fixture
def small(script, monkeypatch):
    """The script with runs of a second."""
    monkeypatch.setattr(script, "COURSE", {"steps": 2, "n_prompts": 2, "n": 2, "max_new_tokens": 5, "lr": 1e-4})
    monkeypatch.setattr(script, "SMOL", {"steps": 1, "n_prompts": 2, "n": 2, "max_new_tokens": 4, "lr": 1e-4})
    monkeypatch.setattr(script, "HELD_OUT", script.HELD_OUT[:2])
    tiny = load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf")
    monkeypatch.setattr(script, "load_base", lambda name: tiny if name == "smollm2" else load_base(name))
    easy, train_judge = script.short_sentence, script.train_judge
    monkeypatch.setattr(script, "short_sentence", lambda p, a: [len(x) + e for x, e in zip(a, easy(p, a), strict=True)])
    monkeypatch.setattr(script, "train_judge", lambda *args: train_judge(*args, n_pairs=4, held_out=2))
    return script


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_script_makes_a_table_and_goes_on_with_it(small, tmp_path, monkeypatch, capsys, dtype):
    monkeypatch.setenv("LLM_DTYPE", dtype)
    out = tmp_path / "table.json"
    assert small.main(["--out", str(out), "--seeds", "1"]) == 0
    rows = {row["arm"]: row for row in json.loads(out.read_text(encoding="utf-8"))["runs"]}
    assert set(rows) == {*small.ARMS, "smollm2"} and dtype in rows["smollm2"]["machine"]
    for arm, row in rows.items():
        steps = 1 if arm == "smollm2" else 2
        assert {len(values) for values in row["history"].values()} == {steps} and row["date"] and row["seed"] == 0
        assert ("gold" in row["history"]) == ("judge" in arm) == ("judge" in row["after"])
    assert len(rows["dots"]["after"]["texts"]) == 2 and rows["smollm2"]["after"]["n"] == 40
    before = out.read_bytes()
    capsys.readouterr()
    assert small.main(["--out", str(out), "--seeds", "1"]) == 0  # nothing is left to do
    assert out.read_bytes() == before and capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        small.main(["--out", str(out), "--steps", "7"])  # other settings: another table
    assert "another table" in capsys.readouterr().err
    monkeypatch.setattr(small, "load_base", lambda name: (None, types.SimpleNamespace(name="another")))
    with pytest.raises(SystemExit):  # what was trained offline was the stand-in
        small.main(["--out", str(out), "--seeds", "1"])
    assert "holds runs of smollm2-tiny, and here is another: name another file with --out" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--steps", "0"], ["--only", "poetry"]])
def test_bad_arguments_are_refused(script, wrong, capsys):
    with pytest.raises(SystemExit):
        script.main(wrong)
    assert "error:" in capsys.readouterr().err


TABLE = SCRIPT.with_suffix(".json")


@pytest.mark.skipif(not TABLE.exists(), reason="the table has not been made")
def test_the_saved_table_is_that_of_the_script(script):
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert table["course"] == script.COURSE and table["smollm2"] == script.SMOL
    assert {row["arm"] for row in table["runs"]} == {*script.ARMS, "smollm2"}
    seeds = {arm: sorted(row["seed"] for row in table["runs"] if row["arm"] == arm) for arm in script.ARMS}
    assert all(found == [0, 1, 2] for found in seeds.values()), seeds
