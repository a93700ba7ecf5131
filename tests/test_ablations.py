"""`04_classification_finetune/ablations.py`: the recipe of lesson 4.1, draws, thresholds, and a table that goes on."""

import ast
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from torch.testing import assert_close

from shared.classification import class_weights, deduplicate, parse_messages, split
from shared.data.places import SAMPLES
from shared.gpt import GPTModel
from shared.tokenizer import BPETokenizer
from tests.test_classification import CONFIG, STORY

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "04_classification_finetune"))

import ablations  # noqa: E402

MESSAGES = deduplicate(parse_messages((SAMPLES / "sms_messages.tsv").read_text(encoding="utf-8")))
SMALL = {"examples": 32, "batch_size": 16, "lr": 1e-3, "learns": "all", "few_batch": 4, "few_steps": 3, "pad_to": 16,
         "threads": 1}  # fmt: skip
JOBS = [("TF-IDF", 20), (ablations.REFERENCE, "all"), ("padded, reads the last token", 20)]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer().train(STORY, CONFIG.vocab_size).to_tiktoken("x")


def cell_of_lesson(text):
    lesson = nbformat.read(ROOT / "04_classification_finetune" / "01_spam_classifier.ipynb", 4)
    (cell,) = [cell.source for cell in lesson.cells if cell.cell_type == "code" and text in cell.source]
    return cell


def reader(tokenizer, read="last real", pad_to=None):
    torch.manual_seed(1)
    return ablations.Reader(GPTModel(CONFIG), tokenizer, read, pad_to).eval()


# --- lesson 4.1's recipe ---------------------------------------------------------------------------------------------


def test_settings_are_those_of_lesson_4_1():
    found = dict(re.findall(r'"(quick|full)": Run\((.*?)\)', cell_of_lesson('"quick": Run(')))
    assert set(found) == set(ablations.SETTINGS)
    for scale, arguments in found.items():
        given = {k.arg: ast.literal_eval(k.value) for k in ast.parse(f"f({arguments})").body[0].value.keywords}
        for name in ("examples", "batch_size", "lr", "learns"):
            assert ablations.SETTINGS[scale][name] == given[name], (scale, name)


def test_fit_trains_as_lesson_4_1_does(tokenizer, monkeypatch):
    train = [("ham", f"see you at {i}") for i in range(70)] + [("spam", f"win {i} pounds") for i in range(10)]
    calls = []

    def train_classifier(model, messages, val_messages=None, **settings):
        settings["weights"] = settings["weights"].tolist()
        calls.append((messages, settings))
        return SimpleNamespace(interrupted=False, val_loss=[0.0])

    run = SimpleNamespace(**ablations.SETTINGS["quick"])
    names = {"run": run, "train": train, "train_classifier": train_classifier, "val_balanced": None, "math": math,
             "class_weights": class_weights, "LabelledTexts": ablations.LabelledTexts, "tokenizer": tokenizer,
             "freeze_except": lambda model, what: None, "model": None}  # fmt: skip
    exec(cell_of_lesson("seen = train + "), names)
    monkeypatch.setattr(ablations, "train_classifier", train_classifier)
    steps = ablations.fit(reader(tokenizer), train, 0, batch_size=run.batch_size, lr=run.lr, examples=run.examples)
    (theirs, lesson), (ours, script) = calls
    assert ours == theirs and steps == names["steps"]
    assert {name: script[name] for name in lesson if name != "eval_every"} == {
        name: value for name, value in lesson.items() if name != "eval_every"
    }
    steps = ablations.fit(reader(tokenizer), train, 0, batch_size=4, lr=run.lr, steps=250)
    assert steps == 253 and calls[-1][1]["epochs"] == 11  # 90 messages are 23 batches


# --- what is drawn, and how it is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "spam"), [(20, 5), (50, 6), (100, 12), (200, 24)])
def test_few_messages_are_drawn_at_the_natural_rate(n, spam):
    messages = [("ham", str(i)) for i in range(880)] + [("spam", str(i)) for i in range(120)]
    drawn = ablations.draw(messages, 3, n)
    assert len(set(drawn)) == len(drawn) == n and set(drawn) <= set(messages)
    assert sum(label == "spam" for label, _ in drawn) == spam
    assert drawn == ablations.draw(messages, 3, n) != ablations.draw(messages, 4, n)
    assert ablations.draw(messages, 3) == messages


def test_reader_pads_and_cuts_nothing(tokenizer):
    texts = ["see you at 8", "the lamp " * 12, ""]
    plain = reader(tokenizer).predict(texts)[1]
    assert_close(reader(tokenizer, pad_to=24).predict(texts)[1], plain, rtol=0, atol=1e-6)
    last = [reader(tokenizer, "last", pad_to).predict(texts, batch_size=1)[1] for pad_to in (None, 24)]
    assert_close(last[0], plain, rtol=0, atol=1e-6)  # alone and without padding, the last is the last real one
    longer = [len(tokenizer.encode_ordinary(text)) > 24 for text in texts]
    assert any(longer) and not all(longer)
    changed = (last[1] - last[0]).abs().amax(dim=1) > 1e-5
    assert changed.tolist() == [not long for long in longer]
    with pytest.raises(ValueError, match="'middle' is not one of"):
        ablations.pool(torch.zeros(1, 2, 3), torch.tensor([2]), "middle")


def test_thresholds():
    labels, scores = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0.1, 0.2, 0.3, 0.6, 0.8])
    f1 = lambda tp, fp, fn: 2 * tp / (2 * tp + fp + fn)  # noqa: E731
    cost = lambda tp, fp, fn: -(10 * fp + fn)  # noqa: E731
    assert ablations.best_threshold(labels, scores, f1) == pytest.approx(0.25)  # F1 4/5; at 0.7 it is 2/3
    assert ablations.best_threshold(labels, scores, cost) == pytest.approx(0.7)
    assert ablations.best_threshold(labels, 1 - scores, cost) == 2  # nothing should be blocked
    rules = ablations.thresholds(0.2, labels, scores)
    assert rules["1 - r"] == pytest.approx(0.8) and rules["best F1"] == pytest.approx(0.25)
    p = rules["cost, by formula"]
    odds = p / (1 - p) * 0.2 / 0.8  # adjusted to the rate
    assert odds / (1 + odds) == pytest.approx(10 / 11)


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tokenizer, tmp_path, monkeypatch):
    """Run the command on the bundled messages with a tiny model; returns a function that gives the file's content."""

    def load_base():
        torch.manual_seed(2)
        return GPTModel(CONFIG), tokenizer

    monkeypatch.setattr(ablations, "SETTINGS", {"quick": dict(SMALL), "full": dict(SMALL)})
    monkeypatch.setattr(ablations, "JOBS", JOBS)
    monkeypatch.setattr(ablations, "load_base", load_base)
    for name, value in (("LLM_SCALE", "quick"), ("LLM_MIRROR", ""), ("LLM_OFFLINE", "1"), ("LLM_DEVICE", "cpu"),
                        ("LLM_DATA_DIR", str(tmp_path / "data"))):  # fmt: skip
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()

    def command(*arguments):
        assert ablations.main(["--out", str(tmp_path / "table.json"), *arguments]) == 0
        return json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))

    yield command
    torch.set_num_threads(threads)


def test_a_table_is_made_continued_and_never_written_over(table, capsys):
    first = table("--runs", "1")
    assert first["data"]["bundled_sample"] and first["data"]["messages"] == len(MESSAGES)
    assert [(run["variant"], run["labels"], run["split"], run["seed"]) for run in first["runs"]] == [
        (name, n, 0, 0) for name, n in JOBS
    ]
    test = split(MESSAGES, seed=0)[2]
    spam = sum(label == "spam" for label, _ in test)
    for run in first["runs"]:
        counts = [run["confusion"], *run.get("confusions", {}).values()]
        assert all([sum(row) for row in confusion] == [len(test) - spam, spam] for confusion in counts)
        assert 0 <= run["auc"] <= 1 and ("confusions" in run) == (run["labels"] == "all")
    capsys.readouterr()
    second = table("--runs", "2", "--only", "TF-IDF")
    assert "has 3 runs: going on" in capsys.readouterr().out
    assert second["runs"][:3] == first["runs"] and len(second["runs"]) == 4
    assert second["runs"][3]["split"] == second["runs"][3]["seed"] == 1
    ablations.SETTINGS["quick"]["few_steps"] = 4
    with pytest.raises(SystemExit, match="2"):
        table("--runs", "1", "--only", "TF-IDF")
    assert "other data or settings: name another file with --out" in capsys.readouterr().err
    for bad in (("--runs", "0"), ("--only", "nothing of the kind")):
        with pytest.raises(SystemExit, match="2"):
            table(*bad)
        assert "nothing to do" in capsys.readouterr().err


def test_runs_of_a_split_share_its_test_part_and_not_their_labels(table):
    runs = [run for run in table("--runs", "6", "--only", "TF-IDF")["runs"] if run["seed"] in (0, 5)]
    assert [run["split"] for run in runs] == [0, 0]
    train = split(MESSAGES, seed=0)[0]
    assert ablations.draw(train, 0, 20) != ablations.draw(train, 5, 20)


def test_the_saved_table_has_whole_runs_of_the_recipe():
    saved = json.loads(ablations.OUT.read_text(encoding="utf-8"))
    assert saved["settings"] == ablations.SETTINGS[saved["scale"]] and not saved["data"]["bundled_sample"]
    rows, seeds = ablations.rows_of(saved)
    assert set(rows) == set(ablations.JOBS) and len(seeds) >= 3  # lesson 4.2 needs them
    assert sum(map(len, rows.values())) == len(saved["runs"])  # none twice
    entry = rows["TF-IDF", "all"][seeds[0]]
    assert entry["confusions"]["0.5"] == entry["confusion"] and len(entry["confusions"]) == 5
