"""`04_classification_finetune/spam_smollm2.py` on the tiny stand-in: prompts, thresholds, a run that is broken off."""

import json
import math
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from shared import data, training
from shared.checkpoints import load_gguf
from shared.classification import SpamClassifier, deduplicate, parse_messages, split

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = data.places.SAMPLES
sys.path.insert(0, str(ROOT / "04_classification_finetune"))

import spam_smollm2 as script  # noqa: E402

MESSAGES = deduplicate(parse_messages((SAMPLES / "sms_messages.tsv").read_text(encoding="utf-8")))


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")
    monkeypatch.setenv("LLM_DEVICE", "cpu")


@pytest.fixture(scope="module")
def tiny():
    return load_gguf(SAMPLES / "smollm2-tiny.gguf")


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("words", script.WORDS)
def test_a_prompt_read_in_two_parts_is_the_prompt(tiny, form, words):
    """The oracle is a plain forward pass over the whole prompt of each text, alone."""
    model, tokenizer = tiny
    texts = ["see you at 8", "", "WIN a prize " * 10, "ok", "£5 for 2"]
    before, after = script.prompt(form, words, MESSAGES[:4])
    found = script.by_prompt(model, tokenizer, texts, before, after, words, batch_size=2)
    answers = [tokenizer.encode_ordinary(word)[0] for word in script.WORDS[words]]
    for text, pair in zip(texts, found, strict=True):
        ids = [*tokenizer.encode(before, allowed_special="all"), *tokenizer.encode_ordinary(f" {text}"),
               *tokenizer.encode(after, allowed_special="all")]  # fmt: skip
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0, -1].log_softmax(dim=-1)[answers]
        torch.testing.assert_close(pair, expected, rtol=1e-4, atol=1e-4)


def test_shots_come_in_turn_and_another_draw_is_another():
    shots = script.draw_shots(MESSAGES, 6, 0)
    assert [label for label, _ in shots] == ["ham", "spam"] * 3 and len(set(shots)) == 6
    assert script.draw_shots(MESSAGES, 6, 0) == shots != script.draw_shots(MESSAGES, 6, 1)
    assert script.draw_shots(MESSAGES, 0, 0) == []
    before, after = script.prompt("plain", "spam/normal", shots[:2])
    assert before.endswith(f"{shots[0][1]}\nLabel: normal\n\nMessage: {shots[1][1]}\nLabel: spam\n\nMessage:")
    assert after == "\nLabel:"


def test_thresholds():
    labels, scores = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([-3.0, -2.0, -1.0, 0.0, 2.0])
    assert script.labelled_threshold(labels, scores) == -1.5  # both spam, and two of three ham
    perfect = script.labelled_threshold(torch.tensor([0, 1]), torch.tensor([0.1, 0.9]))
    assert perfect == pytest.approx(0.5)
    halves = torch.tensor([[0.2, 0.6], [0.1, 0.3]]).log()  # of the two words alone: 1/4 and 3/4, twice
    assert script.content_free_threshold(halves) == pytest.approx(math.log(3), abs=1e-6)
    found = script.measured(labels.repeat(20), scores.repeat(20), {"as asked": 0.0, "x": -1.5})
    assert found["auc"] == round(5 / 6, 4) and found["decisions"]["as asked"]["confusion"] == [[40, 20], [20, 20]]
    assert found["decisions"]["x"]["balanced"] == round((2 / 3 + 1) / 2, 4)
    low, high = found["decisions"]["x"]["interval"]
    assert low < found["decisions"]["x"]["balanced"] <= high


@pytest.fixture
def small(tmp_path, monkeypatch):
    """120 messages and the stand-in in place of the data; returns a function that runs the command."""
    file = tmp_path / "sms_spam" / "SMSSpamCollection"
    file.parent.mkdir()
    file.write_text("\n".join(map("\t".join, MESSAGES[:120])) + "\n", encoding="utf-8")
    found = {"sms_spam": file, "smollm2": SAMPLES / "smollm2-tiny.gguf"}
    monkeypatch.setattr(script.data, "fetch", lambda name, **_: found[name])
    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[1:3])
    monkeypatch.setattr(script, "bootstrap", partial(script.bootstrap, n=20))  # draws, for time

    def run(folder, *options):
        monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / folder))
        (tmp_path / folder).mkdir(exist_ok=True)
        status = script.main(["--out", str(tmp_path / folder / "table.json"), *options])
        table = json.loads((tmp_path / folder / "table.json").read_text(encoding="utf-8"))
        return status, table, {run.pop("name"): run for run in table["runs"] if run.pop("seconds") >= 0}

    return run


def test_a_table_that_was_broken_off_is_the_unbroken_one(small, tmp_path, monkeypatch, capsys):
    _, table, whole = small("whole")
    assert list(whole) == [
        "chat, 0 shots, spam/ham", "chat, 0 shots, spam/normal", "plain, 6 shots (draw 0), spam/ham",
        "plain, 6 shots (draw 0), spam/normal", script.TFIDF, script.COURSE, script.FINE_TUNED]  # fmt: skip
    assert table["model"]["name"] == "smollm2-tiny", "the table says whose figures they are"
    _, _, test = split(MESSAGES[:120])
    assert table["labels"] == "".join(str(int(label == "spam")) for label, _ in test)
    assert len(whole["chat, 0 shots, spam/ham"]["log_odds"]) == len(test)
    assert table["data"]["others"] == len(MESSAGES) - 120 == sum(
        map(sum, whole[script.FINE_TUNED]["others"]["decisions"]["its own"]["confusion"]))  # fmt: skip

    small("broken", "--only", "chat")
    small("broken", "--only", "TF")
    small("broken", "--only", "course")
    step, taken = training.training_step, []

    def stopped(*arguments):
        taken.append(1)
        if len(taken) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(training, "training_step", stopped)
    status, _, part = small("broken", "--only", "SmolLM2")
    assert status == 130 and script.FINE_TUNED not in part
    assert len([*(tmp_path / "broken").glob("smollm2-tiny-spam-*.checkpoint")]) == 1
    assert "the same command goes on" in capsys.readouterr().out
    status, _, again = small("broken")
    assert status == 0 and again == whole
    total = math.ceil(len(split(MESSAGES[:120])[0]) / script.RECIPES[script.FINE_TUNED]["batch_size"])
    assert len(taken) == total > 2, "no step was taken twice"
    assert not [*(tmp_path / "broken").glob("*.checkpoint")]

    kept, other = (SpamClassifier.load(tmp_path / where / "smollm2-tiny-spam") for where in ("whole", "broken"))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), other.parameters(), strict=True))
    assert kept.threshold == other.threshold == whole[script.FINE_TUNED]["test"]["decisions"]["validation"]["threshold"]
    (tn, fp), (fn, tp) = whole[script.FINE_TUNED]["test"]["decisions"]["validation"]["confusion"]
    called = kept.predict([text for _, text in test])[0]
    assert called.count("spam") == fp + tp and called.count("ham") == tn + fn, "what is kept is what was measured"


def test_the_table_of_another_model_is_not_written_over(small, tmp_path, capsys):
    small("whole", "--only", "chat")
    file = tmp_path / "whole" / "table.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"name": "smollm2-tiny"', '"name": "x"'), encoding="utf-8")
    before = file.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        small("whole", "--only", "chat, 0 shots, spam/ham")
    assert "name another file with --out" in capsys.readouterr().err and file.read_bytes() == before
