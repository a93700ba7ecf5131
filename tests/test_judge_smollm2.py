"""SmolLM2 as a judge: letters, grades, likelihoods, the script that tests them; and the assistant that is judged."""

import hashlib
import importlib.util
import json
import math

import pytest
import torch

from shared import judge
from shared.checkpoints import COURSE_BASE, load_gguf, load_model, save_model
from shared.gpt import GPTConfig, GPTModel
from shared.instructions import respond, save_responses
from tools.notebooks import ROOT


@pytest.fixture(scope="module")
def small():
    model, encoding = load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf")
    return model.eval(), encoding


PAIRS = [({"instruction": "Name a colour.", "input": "", "output": "Blue."}, "Blue.", "Nine."),
         ({"instruction": "Say it twice.", "input": "la {la}", "output": "la la"}, "la la", ""),
         ({"instruction": "Count.", "input": "", "output": "1 2"}, "<|im_end|> 1", "1")]  # fmt: skip


def by_hand(model, encoding, said, begun, reply):
    """Nats of `reply` after a conversation, in one piece and without a batch."""
    head, foot = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    ids = encoding.encode(head, allowed_special="all") + encoding.encode_ordinary(said)
    ids += encoding.encode(foot, allowed_special="all") + encoding.encode_ordinary(begun)
    reply = encoding.encode_ordinary(reply) if isinstance(reply, str) else reply
    with torch.no_grad():
        log_probs = model(torch.tensor([ids + reply]))[0].log_softmax(dim=-1)
    return -sum(log_probs[len(ids) - 1 + k, token].item() for k, token in enumerate(reply))


def test_a_letter_is_the_difference_of_two_log_probabilities(small):
    model, encoding = small
    found = judge.by_letter(model, encoding, PAIRS)
    for one, (entry, a, b) in zip(found.tolist(), PAIRS, strict=True):
        said = judge.BETTER.format(instruction=entry["instruction"], input=entry["input"] or "(none)", a=a, b=b)
        losses = [by_hand(model, encoding, said, "Answer", f" {letter}") for letter in "AB"]
        assert one == pytest.approx(losses[1] - losses[0], abs=1e-4)
    alone = [judge.by_letter(model, encoding, [pair]).item() for pair in PAIRS]
    assert found.tolist() == pytest.approx(alone, abs=1e-4)  # the batch changes nothing


def test_grades_are_five_probabilities(small):
    model, encoding = small
    found = judge.by_grade(model, encoding, [(entry, a) for entry, a, _ in PAIRS])
    assert found.shape == (3, 5) and found.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    entry, answer, _ = PAIRS[0]
    said = judge.GRADE.format(instruction=entry["instruction"], input="(none)", answer=answer)
    losses = torch.tensor([by_hand(model, encoding, said, "Grade: ", digit) for digit in "12345"])
    assert found[0].tolist() == pytest.approx((-losses).softmax(dim=0).tolist(), abs=1e-4)


def test_likelihood_counts_the_end_and_divides_by_bytes(small):
    model, encoding = small
    answers = ["Blue.", "", "<|im_end|> Blau äöü"]
    found = judge.by_likelihood(model, encoding, [(PAIRS[0][0], answer) for answer in answers])
    for one, answer in zip(found.tolist(), answers, strict=True):
        ids = [*encoding.encode_ordinary(answer), encoding.end_of_turn]
        nats = by_hand(model, encoding, "Name a colour.", "", ids)
        assert one == pytest.approx(nats / math.log(2) / max(1, len(answer.encode())), rel=1e-4)
    with_input = judge.by_likelihood(model, encoding, [(PAIRS[1][0], "la la")]).item()
    nats = by_hand(model, encoding, "Say it twice.\nla {la}", "", [*encoding.encode_ordinary("la la"), 2])
    assert with_input == pytest.approx(nats / math.log(2) / 5, rel=1e-4)


# The script that asks about pairs whose better answer is known.

SCRIPT = ROOT / "05_instruction_finetune" / "judge_smollm2.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("judge_smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_worse_answers_are_worse_and_come_again(script):
    entries = [{"instruction": "Name a colour.", "input": "blue", "output": "Blue is a colour."},
               {"instruction": "Say hello.", "input": "", "output": "Hello there, friends!"},
               {"instruction": "Count.", "input": "", "output": "one"}]  # fmt: skip
    references = [entry["output"] for entry in entries]
    for kind in script.CORRUPTIONS:
        assert script.worse_answers(kind, entries, 3) == script.worse_answers(kind, entries, 3)
    other, shuffled, wrong = (script.worse_answers(kind, entries, 0) for kind in script.CORRUPTIONS)
    assert set(other) <= set(references) and all(a != b for a, b in zip(other, references, strict=True))
    assert [sorted(text.split()) for text in shuffled] == [sorted(text.split()) for text in references]
    assert shuffled[0] != references[0] and shuffled[1] != references[1] and shuffled[2] == "one"
    assert wrong[0].startswith("Blue ") and wrong[0].endswith(" a colour.") and wrong[0] != references[0]
    assert wrong[1].startswith("Hello there, ") and wrong[1].endswith("!") and "friends" not in wrong[1]


def test_the_saved_table_is_whole(script):
    table = json.loads(script.OUT.read_text(encoding="utf-8"))
    n, rows = table["made_with"]["pairs"], table["rows"]
    asked = hashlib.sha256((judge.BETTER + judge.GRADE).encode()).hexdigest()[:12]
    assert n >= 100 and table["made_with"]["asked"] == asked
    assert {(row["worse"], row["seed"]) for row in rows} >= {(kind, seed) for kind in script.CORRUPTIONS
                                                             for seed in range(3)} | {("the base's answer", 0)}
    for row in rows:
        lists = [row["pairs"], row["first"], row["second"], *row["good"].values(), *row["bad"].values()]
        assert {len(values) for values in lists} == {n}


def test_the_script_goes_on_where_it_stopped(script, tmp_path, capsys, monkeypatch, small):
    monkeypatch.setattr(script, "load_base", lambda path=None: small)
    monkeypatch.setattr(script, "load_assistant", lambda base, tokenizer, training, test, **_: (
        base, [entry["output"] for entry in test]))  # fmt: skip
    monkeypatch.setattr(script, "respond", lambda model, tokenizer, entries, n: ["Yes." for _ in entries])
    out = tmp_path / "table.json"
    script.main(["--seeds", "1", "--pairs", "2", "--out", str(out)])
    whole = json.loads(out.read_text(encoding="utf-8"))
    assert len(whole["rows"]) == 4 and capsys.readouterr().out.count("turn with the order") == 4
    out.write_text(json.dumps(whole | {"rows": whole["rows"][:2]}), encoding="utf-8")
    script.main(["--seeds", "1", "--pairs", "2", "--out", str(out)])
    assert json.loads(out.read_text(encoding="utf-8"))["rows"] == whole["rows"]
    assert capsys.readouterr().out.count("turn with the order") == 2
    with pytest.raises(SystemExit, match="2"):
        script.main(["--seeds", "1", "--pairs", "3", "--out", str(out)])  # other conditions
    assert "name another file with --out" in capsys.readouterr().err
    assert json.loads(out.read_text(encoding="utf-8"))["rows"] == whole["rows"]


# The assistant of lesson 5.1, as lessons 5.2 and 5.2b read it.


@pytest.fixture
def assistant(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("assistant", SCRIPT.with_name("assistant.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(module, "with_families", lambda training, test: training)  # eight hundred entries more
    return module


def tiny_gpt(seed):
    torch.manual_seed(seed)
    tokenizer = load_model(COURSE_BASE)[1]
    config = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=64, emb_dim=16, n_heads=2, n_layers=1)
    return GPTModel(config), tokenizer


TEST = [{"instruction": f"Say {word}.", "input": "", "output": word} for word in ("one", "two", "three", "four")]


@pytest.mark.parametrize(("spoil", "said"), [
    (None, "the assistant: "), ("folder", "is not there"), ("responses", "does not fit"), ("entries", "other entries"),
    ("base", "another base"), ("answers", "another model"), ("weights", "does not fit"), ("rows", "no list of entries"),
])  # fmt: skip
def test_an_assistant_that_does_not_fit_is_made_anew(assistant, tmp_path, capsys, spoil, said):
    base, tokenizer = tiny_gpt(0)
    folder = tmp_path / f"{tokenizer.name}-assistant"
    if spoil != "folder":
        model = tiny_gpt(1)[0] if spoil == "base" else base
        save_model(model, tokenizer, folder)
        answers = respond(model, tokenizer, TEST, 8) if spoil != "answers" else ["never said"] * 4
        entries = TEST if spoil != "entries" else [TEST[0] | {"output": "eins"}, *TEST[1:]]
        save_responses(folder / "responses.json", entries, answers)
    if spoil == "responses":
        (folder / "responses.json").unlink()
    if spoil == "rows":
        (folder / "responses.json").write_text("[7]", encoding="utf-8")
    if spoil == "weights":
        (folder / "model.safetensors").write_bytes(b"half")
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}
    model, answers = assistant.load_assistant(base, tokenizer, TEST, TEST, epochs=1, lr=1e-3, new_tokens=8)
    shown = capsys.readouterr().out
    assert said in shown and str(tmp_path) not in shown.replace(str(tmp_path.name), "") and len(answers) == 4
    assert ("fine-tuning one in memory" in shown) == (spoil is not None)
    assert before == ({file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {})
    assert model.config == base.config and model is not base
