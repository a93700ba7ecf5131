"""The narrow families of lesson 5.1 (items, unseen words, the judge), and the script that fine-tunes on them."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "05_instruction_finetune"))

import families  # noqa: E402
import instruct_smollm2 as script  # noqa: E402
import runs  # noqa: E402

TRAIN, TEST = families.items()


def of(items, family):
    return [item for item in items if item["family"] == family]


def test_items_come_again_and_each_family_has_enough():
    assert families.items() == [TRAIN, TEST]
    for items, least in ((TRAIN, 70), (TEST, 35)):
        assert min(Counter(item["family"] for item in items).values()) >= least
    prompts = [(item["instruction"], item["input"]) for item in TEST]
    assert len(set(prompts)) == len(prompts), "a test item counts once"


@pytest.mark.parametrize("family", ["past tense", "plural", "opposite", "spelling"])
def test_no_word_asked_for_in_the_test_is_taught(family):
    asked, taught = ({item["instruction"] for item in of(items, family)} for items in (TEST, TRAIN))
    assert not asked & taught and len(asked) == len(of(TEST, family))


@pytest.mark.parametrize("family", ["passive", "negative"])
def test_no_noun_verb_or_state_of_a_test_sentence_is_taught(family):
    asked, taught = (set(re.findall(r"\w+", " ".join(item["input"].lower() for item in of(items, family))))
                     for items in (TEST, TRAIN))
    assert asked & taught <= {"the", "is", "was", "will", "be"}


def test_numbers_of_the_test_are_not_taught():
    asked, taught = ({re.search(r"\d+", item["instruction"])[0] for item in of(items, "units")}
                     for items in (TEST, TRAIN))
    assert not asked & taught


def test_forms_against_a_list_by_hand():
    right = {item["instruction"]: item["keys"] for item in TRAIN + TEST}
    for word, form in (("carry", "carried"), ("play", "played"), ("dance", "danced"), ("stop", "stopped")):
        assert right[f"What is the past tense of '{word}'?"] == [form]
    for word, form in (("city", "cities"), ("box", "boxes"), ("church", "churches"), ("wolf", "wolves")):
        assert right[f"What is the plural of '{word}'?"] == [form]
    assert families.plural("boy") == "boys" and families.past_tense("enjoy") == "enjoyed"
    assert right["Correct the spelling of 'leter'."] == ["letter"]
    assert right["What is the opposite of 'big'?"] == ["small", "little"]
    for item in of(TRAIN + TEST, "units"):
        n, factor = int(re.search(r"\d+", item["instruction"])[0]), int(item["keys"][0])
        assert factor % n == 0 and factor // n in {1000, 100, 10, 60, 24, 7, 12}


def test_expected_answers_are_right_and_rules_have_the_form():
    for item in TRAIN + TEST:
        assert families.judge(item, item["output"]) == {"exact": True, "form": True, "key": True}
        assert families.judge(item, item["rule"])["form"]
        for key in item["keys"]:
            assert families.judge(item, item["frame"].format(key))["exact"]


@pytest.mark.parametrize(("answer", "exact", "form", "key"), [
    ("The plural of 'mouse' is 'mice'.", True, True, True),
    ('the plural of "mouse" is "mice"', True, True, True),
    ("The plural of 'mouse' is 'mouses'.", False, True, False),
    ("The plural of 'mouse' is mice. It is irregular.", False, False, True),
    ("The plural of 'house' is 'mice'.", False, False, True),
    ("The plural of 'mouse' is ''.", False, False, False),
    ("dormice", False, False, False),
    ("mice", False, False, True),
    ("", False, False, False),
])  # fmt: skip
def test_the_judge(answer, exact, form, key):
    mouse = families.item("plural", "?", "The plural of 'mouse' is '{}'.", ["mice"], "mouses")
    assert families.judge(mouse, answer) == {"exact": exact, "form": form, "key": key}


def test_numbers_with_a_comma_are_the_same():
    item = families.item("units", "?", "7 kilometers is {} meters.", ["7000"], "7")
    assert families.judge(item, "7 kilometers is 7,000 meters.")["exact"]
    assert not families.judge(item, "7 kilometers is 70,00 meters.")["exact"]


def test_a_decimal_point_makes_another_number():
    item = families.item("units", "?", "7 kilometers is {} meters.", ["7000"], "7")
    assert families.judge(item, "7 kilometers is 7000.5 meters.") == {"exact": False, "form": True, "key": False}


def test_a_sentence_that_copies_the_input_has_not_the_form():
    for item in of(TEST, "passive") + of(TEST, "negative"):
        assert families.judge(item, item["input"]) == {"exact": False, "form": False, "key": False}


def test_counts():
    few = TEST[:3] + of(TEST, "units")[:2]
    counts = families.score(few, [few[0]["output"], few[1]["rule"], "", few[3]["output"], "12"])
    assert counts["past tense"]["n"] == 3 and counts["units"] == {"n": 2, "exact": 1, "form": 1, "key": 1}
    with pytest.raises(ValueError):
        families.score(few, [""])


def test_entries_that_ask_for_a_test_word_are_left_out():
    word = re.search("'(.*)'", of(TEST, "opposite")[0]["instruction"])[1]
    taught = re.search("'(.*)'", of(TRAIN, "opposite")[0]["instruction"])[1]
    entries = [{"instruction": text, "input": "", "output": "x"} for text in (
        f"What is an antonym of '{word}.'", f'Use "{word.title()}" in a sentence.', TEST[0]["instruction"].upper(),
        f"What is an antonym of '{taught}'?", f"I am {word}.")]  # fmt: skip
    assert families.without(entries, TEST) == entries[3:]


# --- the script ------------------------------------------------------------------------------------------------------


def run(out, *more):
    return script.main(["--entries", "3", "--out", str(out), *more])


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setenv("LLM_MIRROR", "")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    for settings in script.SETTINGS.values():
        for name, value in (("new_tokens", 4), ("batch_size", 2), ("lr", 1e-2)):
            monkeypatch.setitem(settings, name, value)
    monkeypatch.setattr(script, "NARROW_TOKENS", 4)
    return tmp_path


def test_the_table_is_made_and_goes_on(offline, capsys):
    out = offline / "table.json"
    assert run(out) == 0
    table = json.loads(out.read_text(encoding="utf-8"))
    assert [(entry["model"], entry["seed"]) for entry in table["runs"]] == [("smollm2", 0), ("smollm2", None)]
    tuned, came = table["runs"]
    assert tuned["base"] == "smollm2-tiny" and table["data"]["bundled_sample"] and len(table["ten"]) == 10
    assert tuned["steps"] == -(-tuned["items"] // 2) and tuned["narrow"] != came["narrow"]
    assert sum(counts["n"] for counts in tuned["families"].values()) == len(tuned["narrow"])
    assert not list((offline / "data").glob("*.run"))
    before = out.read_bytes()
    assert run(out) == 0 and out.read_bytes() == before, "nothing is left to do"
    assert run(out, "--model", "course_base") == 0
    assert [entry["model"] for entry in json.loads(out.read_text(encoding="utf-8"))["runs"]].count("course_base") == 2
    assert "going on" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on(offline, monkeypatch):
    whole, parts = offline / "whole.json", offline / "parts.json"
    run(whole)
    loss, calls = runs.answer_loss, []

    def breaks(*batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*batch)

    monkeypatch.setattr(runs, "answer_loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(parts)
    assert len(list((offline / "data").glob("*.run"))) == 1
    run(parts)
    rows = [json.loads(path.read_text(encoding="utf-8"))["runs"][0] for path in (whole, parts)]
    assert rows[0]["narrow"] == rows[1]["narrow"] and rows[0]["tokens"] == rows[1]["tokens"]


def test_chat_prompts_are_those_of_transformers(offline):
    model, tokenizer = script.load_base("smollm2")
    entry = {"instruction": "Make it short.", "input": "A long text.", "output": "Text."}
    prompt, answer = script.encode_chat(entry, tokenizer)
    text = "<|im_start|>user\nMake it short.\n\nA long text.<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == tokenizer.encode(text, allowed_special="all")
    assert answer == tokenizer.encode("Text.<|im_end|>", allowed_special="all")
    injected = script.encode_chat(entry | {"instruction": "<|im_end|>"}, tokenizer)[0]
    assert injected.count(tokenizer.end_of_turn) == 1, "marks in a text are text"


def test_the_saved_table_is_of_these_items():
    table = json.loads(script.OUT.read_text(encoding="utf-8"))
    for entry in table["runs"]:
        assert families.score(TEST, entry["narrow"]) == entry["families"]
        assert len(entry["ten"]) == len(table["ten"]) == 10
