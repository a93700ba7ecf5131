"""Instructions: rows as they come, prompts and answers, batches beside `transformers`, answers in batches."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.data import DataLoader

from shared import instructions
from shared.batches import pack, random_split
from shared.checkpoints import save_model
from shared.data.formats import read_entries
from shared.generation import generate
from shared.gpt import GPTConfig, GPTModel
from shared.instructions import (
    ALPACA,
    ALPACA_CHAT_TEMPLATE,
    PHI3,
    InstructionData,
    Template,
    answer_loss,
    check_entries,
    collate_instructions,
    encode_entry,
    extract_response,
    format_prompt,
    instruction_loader,
    respond,
    save_responses,
)
from shared.loss import IGNORE, next_token_loss
from shared.tokenizer import BPETokenizer
from shared.training import train
from tests.test_attention_and_gpt import lively

ROOT = Path(__file__).resolve().parents[1]
STORY = (ROOT / "shared/data/samples/the-lamp-room.txt").read_text(encoding="utf-8")
SAMPLE = ROOT / "shared/data/samples/instructions.json"
CONFIG = GPTConfig(600, 128, emb_dim=32, n_heads=4, n_layers=2)
ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
    {"instruction": "Say\nit in two lines.", "input": 'naïve "漢字" {x} \\', "output": "One.\nTwo \U0001f600."},
]
NASTY = ["{input}", "{instruction}", "{", "}", "{}", "{0}", "%s", "\\1", "\\g<0>", "{{x}}", "$&", "a {input} b {input}"]


@pytest.fixture(scope="module")
def tokenizer(entries):
    """An encoding that has seen prompts: about 60 tokens for an entry."""
    text = "".join(format_prompt(entry) + entry["output"] for entry in entries[:80])
    return BPETokenizer().train(text, CONFIG.vocab_size).to_tiktoken("x")


@pytest.fixture(scope="module")
def model():
    return lively(CONFIG, seed=1)


@pytest.fixture(scope="module")
def entries():
    return check_entries(read_entries(SAMPLE))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "my_gpt"
    save_model(model, tokenizer, folder, chat_template=ALPACA_CHAT_TEMPLATE)
    return folder


def lengths_of(data):
    return [len(ids) for ids, _ in data]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "problem"), [
    ({"input": "", "output": "x"}, "has no instruction"),
    ({"instruction": "x", "input": ""}, "has no output"),
    ({}, "has no instruction"),
    ({"instruction": None, "output": "x"}, "instruction is null, not text"),
    ({"instruction": "x", "output": None}, "output is null, not text"),
    ({"instruction": 7, "output": "x"}, "instruction is 7, not text"),
    ({"instruction": "x", "input": 7.5, "output": "x"}, "input is 7.5, not text"),
    ({"instruction": "x", "output": False}, "output is false, not text"),
    ({"instruction": "x", "output": float("nan")}, "output is NaN, not text"),
    ({"instruction": b"x", "output": "x"}, "instruction is \"b'x'\", not text"),
    ({"instruction": "x", "output": ["a", "b"]}, 'output is ["a", "b"], not text'),
    ({"instruction": "x", "output": {"a": "b" * 100}}, "output is"),
    ({"instruction": "x", "response": 3}, "response is 3, not text"),
    ({"instruction": "x", "output": ""}, "output is empty"),
    ({"instruction": "x", "output": " \n"}, "output is empty"),
    ({"instruction": "\t", "output": "x"}, "instruction is empty"),
    ({"instruction": "x", "response": ""}, "response is empty"),
    ("text", "is str, not an object"), (None, "is NoneType, not an object"), (5, "is int, not an object"),
    (["a"], "is list, not an object"),
])  # fmt: skip
def test_wrong_row_is_named_and_the_rest_stays(row, problem):
    entries, problems = check_entries([ROWS[0], row, ROWS[1]])
    assert entries == ROWS[:2]
    [(place, said)] = problems
    assert place == 1 and said.startswith(problem) and len(said) < 80


def test_fields_are_brought_into_one_form():
    rows = [
        {"instruction": " a\n", "output": "x "}, {"instruction": "b", "input": None, "response": "y"},
        {"instruction": "c", "input": " i ", "output": "z", "response": 5, "id": 7},
        {"instruction": "\ud83d half", "output": "\ud83d\ude00 pair"},
    ]  # fmt: skip
    entries, problems = check_entries(rows)
    assert problems == [] and rows[0]["output"] == "x "  # what was given is not changed
    assert entries == [
        {"instruction": "a", "input": "", "output": "x"}, {"instruction": "b", "input": "", "output": "y"},
        {"instruction": "c", "input": "i", "output": "z"},
        {"instruction": "\ufffd half", "input": "", "output": "\U0001f600 pair"},
    ]  # fmt: skip
    json.dumps(entries, ensure_ascii=False).encode("utf-8")  # half a pair would be an error here


def test_duplicates_by_spacing_and_case():
    def row(instruction, text, output):
        return {"instruction": instruction, "input": text, "output": output}

    rows = [row("Name a  colour", "x", "1"), row("name A colour ", " X", "2"), row("Name a colour", "", "3"),
            5, row("NAME\na colour", None, "4"), row("Straße", "", "5"), row("STRASSE", "", "6"),
            row("Name a colour.", "", "7"), row("Nam e a colour", "", "8")]  # fmt: skip
    entries, problems = check_entries(rows)
    assert [entry["output"] for entry in entries] == ["1", "3", "5", "7", "8"]
    assert [place for place, _ in problems] == [1, 3, 4, 6]
    assert problems[0][1] == "same instruction and input as row 0"
    assert problems[2][1] == "same instruction and input as row 2"


def test_wrong_row_does_not_count_as_the_first_of_duplicates():
    entries, problems = check_entries([{"instruction": "a", "output": ""}, {"instruction": "a", "output": "x"}])
    assert len(entries) == 1 and problems == [(0, "output is empty")]


@given(st.lists(st.one_of(
    st.none(), st.integers(), st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "response"]),
        st.one_of(st.none(), st.integers(), st.sampled_from(["", " ", "a", "A", "b  c", "b c"])),
    )), max_size=12))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_every_row_is_kept_or_named(rows):
    entries, problems = check_entries(rows)
    assert len(entries) + len(problems) == len(rows)
    places = [place for place, _ in problems]
    assert places == sorted(set(places))
    again, none = check_entries(entries)
    assert again == entries and none == []


def test_nothing_stands_in_two_parts_after_the_check(entries):
    copies = entries + [entry | {"instruction": entry["instruction"].upper()} for entry in entries]
    train_part, *others = random_split(check_entries(copies)[0])
    seen = {(e["instruction"].casefold(), e["input"]) for e in train_part}
    assert not any((e["instruction"].casefold(), e["input"]) in seen for part in others for e in part)
    train_part, *others = random_split(copies)  # without it they do
    seen = {(e["instruction"].casefold(), e["input"]) for e in train_part}
    assert any((e["instruction"].casefold(), e["input"]) in seen for part in others for e in part)


# --- prompts and answers ---------------------------------------------------------------------------------------------


def test_alpaca_prompts_letter_by_letter():
    assert format_prompt(ROWS[0]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName a colour.\n\n### Response:\n"
    )
    assert format_prompt(ROWS[1]) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd the numbers.\n\n### Input:\n2 and 3\n\n### Response:\n"
    )
    assert format_prompt({"instruction": "Name a colour."}) == format_prompt(ROWS[0])


def test_phi3_prompts_letter_by_letter():
    assert format_prompt(ROWS[0], PHI3) == "<|user|>\nName a colour.<|end|>\n<|assistant|>\n"
    assert format_prompt(ROWS[1], PHI3) == "<|user|>\nAdd the numbers.\n2 and 3<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("template", [ALPACA, PHI3], ids=["alpaca", "phi3"])
@pytest.mark.parametrize("text", NASTY)
def test_braces_in_the_users_text_are_left_alone(text, template):
    marks = "\ue000", "\ue001"  # characters that stand nowhere else
    plain = format_prompt({"instruction": marks[0], "input": ""}, template)
    assert format_prompt({"instruction": text, "input": ""}, template) == plain.replace(marks[0], text)
    both = format_prompt({"instruction": marks[0], "input": marks[1]}, template)
    for other in ("my input", *NASTY):
        found = format_prompt({"instruction": text, "input": other}, template)
        assert found == both.replace(marks[0], "\0").replace(marks[1], other).replace("\0", text)
        assert found.count("my input") == (other == "my input")


def test_template_of_the_readers_own():
    template = Template('{"q": "{instruction}"}\nA: ', "{input}: {instruction}\nA: ", answer="\nA: ", end="\nQ")
    assert format_prompt(ROWS[0], template) == '{"q": "Name a colour."}\nA: '
    assert format_prompt(ROWS[1], template) == "2 and 3: Add the numbers.\nA: "
    assert extract_response(format_prompt(ROWS[1], template) + "5\nQ: more", template) == "5"


@pytest.mark.parametrize("template", [ALPACA, PHI3], ids=["alpaca", "phi3"])
def test_the_bundled_answers_come_back_whole(entries, template):
    for entry in entries:
        assert extract_response(format_prompt(entry, template) + entry["output"], template) == entry["output"]


@pytest.mark.parametrize(("answer", "found"), [
    ("Blue.", "Blue."), ("  Blue.\n\n", "Blue."), ("", ""), ("\n\n", ""),
    ("Blue.<|endoftext|>", "Blue."), ("Blue.<|endoftext|>Below is an instruction", "Blue."), ("<|endoftext|>x", ""),
    ("Use ### for a heading.", "Use ### for a heading."),
    ("# Title\n### Step 1\nDo it.\n### Step 2", "# Title\n### Step 1\nDo it.\n### Step 2"),
    ("Say ### Response: twice", "Say ### Response: twice"),
    ("Blue.\n\n### Instruction:\nName another.\n\n### Response:\nRed.", "Blue."),
    ("Blue.\n### Response:\nRed.", "Blue."), ("Blue.\n\n### Input:\nx", "Blue."), ("### Instruction:\nBlue.", ""),
    ("Blue.\n<|user|>\nAnother", "Blue."), ("two\nlines", "two\nlines"), ("{input} \\1 $", "{input} \\1 $"),
])  # fmt: skip
def test_alpaca_answer_is_found(answer, found):
    for entry in ROWS:
        assert extract_response(format_prompt(entry) + answer) == found
    assert extract_response(answer.replace("### Response:\n", "")) == extract_response(
        ALPACA.answer + answer.replace("### Response:\n", "")
    )  # without a mark the whole text is the answer


@pytest.mark.parametrize(("answer", "found"), [
    ("Blue.<|end|>", "Blue."), ("Blue.<|end|>\n<|user|>\nMore", "Blue."), ("Blue.\n<|user|>\nMore<|end|>", "Blue."),
    ("Blue.<|endoftext|>", "Blue."), ("### Heading\nBlue.", "### Heading\nBlue."), ("<|end|>", ""),
    ("a < b |end| c", "a < b |end| c"),
])  # fmt: skip
def test_phi3_answer_is_found(answer, found):
    for entry in ROWS:
        assert extract_response(format_prompt(entry, PHI3) + answer, PHI3) == found


def test_answer_that_repeats_the_prompt_ends_where_that_begins():
    prompt = format_prompt(ROWS[0])
    assert extract_response(prompt + "Blue.\n\n" + prompt + "Red.").startswith("Blue.")
    assert "Red" not in extract_response(prompt + "Blue.\n\n" + prompt + "Red.")


texts = st.text(st.sampled_from("abc {}\n#:<|>\\é漢\U0001f600"), max_size=30)


@given(texts, texts, texts, st.sampled_from([ALPACA, PHI3]))
@settings(max_examples=150, deadline=None)
def test_prompt_holds_the_texts_and_gives_the_answer_back(instruction, text, answer, template):
    entry = {"instruction": instruction, "input": text, "output": answer}
    prompt = format_prompt(entry, template)
    assert instruction in prompt and text in prompt and prompt.endswith(template.answer)
    assert len(prompt) - len(instruction) - len(text) in {
        len(template.plain) - len("{instruction}"), len(template.with_input) - len("{instruction}{input}")
    }  # fmt: skip
    assert extract_response(prompt + answer, template) == answer.strip()


# --- entries as tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [ALPACA, PHI3], ids=["alpaca", "phi3"])
def test_entry_as_tokens(tokenizer, template):
    for entry in [*ROWS, {"instruction": "<|endoftext|>", "input": "", "output": "<|endoftext|> is a mark"}]:
        prompt, answer = encode_entry(entry, tokenizer, template)
        assert tokenizer.decode(prompt) == format_prompt(entry, template)
        end = "<|end|>" if template is PHI3 else ""
        assert tokenizer.decode(answer[:-1]) == entry["output"] + end
        assert answer[-1] == tokenizer.eot_token
        assert tokenizer.eot_token not in prompt + answer[:-1]  # what a reader writes is never the real mark


@pytest.mark.parametrize("min_answer", [1, 8, 40])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 1])
def test_long_entries_are_cut_or_left_out_and_counted(tokenizer, entries, share, min_answer):
    lengths = sorted(sum(map(len, encode_entry(entry, tokenizer))) for entry in entries)
    max_tokens = lengths[int(share * (len(lengths) - 1))]
    data = InstructionData(entries, tokenizer, max_tokens, min_answer=min_answer)
    assert len(data) + len(data.left_out) == len(entries)
    kept = [i for i in range(len(entries)) if i not in data.left_out]
    for i, (ids, is_answer) in zip(kept, data, strict=True):
        prompt, answer = encode_entry(entries[i], tokenizer)
        assert ids.tolist() == (prompt + answer)[:max_tokens]  # the prompt is always whole
        assert is_answer.tolist() == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        assert (i in data.cut) == (len(prompt) + len(answer) > max_tokens) == (ids[-1] != tokenizer.eot_token)
        assert is_answer.sum() >= min(min_answer, len(answer))
    for i in data.left_out:
        prompt, answer = encode_entry(entries[i], tokenizer)
        assert max_tokens - len(prompt) < min(min_answer, len(answer))
    assert not set(data.cut) & set(data.left_out)
    if share == 1:
        assert data.cut == data.left_out == []
    else:
        assert data.left_out and (data.cut or min_answer == 40)


def test_nothing_fits(tokenizer, entries):
    with pytest.raises(ValueError, match=f"none of {len(entries)} entries fits into 20 tokens"):
        InstructionData(entries, tokenizer, 20)
    with pytest.raises(ValueError, match="none of 0 entries"):
        InstructionData([], tokenizer, 20)


# --- packing ---------------------------------------------------------------------------------------------------------


def padded_positions(rows, batch_size):
    order = sorted(rows, key=lambda row: -len(row[0]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return sum(collate_instructions(batch)[0].numel() for batch in batches) - sum(len(ids) - 1 for ids, _ in rows)


def test_packing_keeps_every_token_once_and_pads_less(tokenizer, entries):
    data = InstructionData(entries, tokenizer, 256)
    rows = pack(data, 256)
    assert all(len(ids) == len(is_answer) <= 256 for ids, is_answer in rows)
    found = Counter()
    for ids, is_answer in rows:  # an entry begins where an answer has ended
        starts = [0, *[t for t in range(1, len(ids)) if is_answer[t - 1] and not is_answer[t]], len(ids)]
        for start, end in zip(starts, starts[1:], strict=False):
            found[tuple(ids[start:end].tolist()), tuple(is_answer[start:end].tolist())] += 1
    assert found == Counter((tuple(ids.tolist()), tuple(mask.tolist())) for ids, mask in data)
    n_tokens = sum(lengths_of(data))
    assert len(rows) < len(data) and len(rows) >= -(-n_tokens // 256)
    one_by_one = list(data)
    random.Random(0).shuffle(one_by_one)
    shuffled = sum(collate_instructions(one_by_one[i : i + 8])[0].numel() for i in range(0, len(data), 8))
    assert padded_positions(rows, 8) < (shuffled - n_tokens + len(data)) / 2
    joined = sum(map(len, (ids for ids, _ in pack(data, 3 * 256))))
    assert joined == n_tokens


# --- batches ---------------------------------------------------------------------------------------------------------


def as_labels(batch):
    """The same batch for transformers: (ids, mask, labels) [B, longest]; it moves the labels by one itself."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), longest), 7)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, is_answer) in enumerate(batch):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        for t in range(len(row)):
            if is_answer[t]:
                labels[i, t] = row[t]
    return ids, mask, labels


@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("template", [ALPACA, PHI3], ids=["alpaca", "phi3"])
def test_loss_equals_that_of_transformers(folder, model, tokenizer, entries, template, mask_prompt):
    import transformers

    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    batch = list(InstructionData(entries[:8], tokenizer, 128, template))
    ids, mask, labels = as_labels(batch)
    if not mask_prompt:
        labels = ids.masked_fill(mask == 0, -100)
    expected = theirs(ids, attention_mask=mask, labels=labels).loss
    assert_close(next_token_loss(model, *collate_instructions(batch, mask_prompt)), expected, rtol=0, atol=1e-5)
    other = next_token_loss(model, *collate_instructions(batch, not mask_prompt))
    assert (other - expected).abs() > 1e-3


def test_gradients_equal_those_of_transformers(folder, tokenizer, entries):
    import transformers

    theirs, ours = transformers.GPT2LMHeadModel.from_pretrained(folder).eval(), lively(CONFIG, seed=1)
    batch = list(InstructionData(entries[:4], tokenizer, 128))
    ids, mask, labels = as_labels(batch)
    theirs(ids, attention_mask=mask, labels=labels).loss.backward()
    next_token_loss(ours, *collate_instructions(batch)).backward()
    assert_close(ours.token_embedding.weight.grad, theirs.transformer.wte.weight.grad, rtol=1e-4, atol=1e-5)


def test_targets_are_the_answer_and_nothing_else(tokenizer):
    batch = list(InstructionData(ROWS, tokenizer, 400))
    inputs, targets = collate_instructions(batch)
    assert inputs.shape == targets.shape == (3, max(len(ids) for ids, _ in batch) - 1)
    everything = collate_instructions(batch, mask_prompt=False)[1]
    for i, entry in enumerate(ROWS):
        n = len(batch[i][0])
        assert inputs[i, : n - 1].tolist() == batch[i][0][:-1].tolist()
        counted = targets[i][targets[i] != IGNORE].tolist()
        assert tokenizer.decode(counted[:-1]) == entry["output"] and counted[-1] == tokenizer.eot_token
        first = (targets[i] != IGNORE).nonzero()[0].item()
        assert tokenizer.decode(inputs[i, : first + 1].tolist()) == format_prompt(entry)  # with its mark
        assert everything[i, : n - 1].tolist() == batch[i][0][1:].tolist()
        assert (targets[i, n - 1 :] == IGNORE).all() and (everything[i, n - 1 :] == IGNORE).all()


def test_padding_and_company_do_not_change_the_loss(model, tokenizer, entries):
    batch = list(InstructionData(entries[:6], tokenizer, 128))
    counts = [int(is_answer.sum()) for _, is_answer in batch]
    alone = [next_token_loss(model, *collate_instructions([item])).item() for item in batch]
    mean = sum(loss * n for loss, n in zip(alone, counts, strict=True)) / sum(counts)
    assert next_token_loss(model, *collate_instructions(batch)).item() == pytest.approx(mean, abs=1e-5)


def test_packed_rows_count_the_same_targets(tokenizer, entries):
    data = InstructionData(entries, tokenizer, 128)
    targets = [collate_instructions([item])[1] for item in data]
    packed = [collate_instructions([item])[1] for item in pack(data, 256)]
    assert sorted(torch.cat(targets, 1)[0].tolist())[-300:] == sorted(torch.cat(packed, 1)[0].tolist())[-300:]
    assert sum((t != IGNORE).sum() for t in targets) == sum((t != IGNORE).sum() for t in packed)


def batches_of(loader):
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in loader]


def test_loader_takes_every_entry_once_and_can_be_repeated(tokenizer, entries):
    data = InstructionData(entries[:50], tokenizer, 128)
    first = batches_of(instruction_loader(data, 8, seed=3))
    assert first == batches_of(instruction_loader(data, 8, seed=3)) != batches_of(instruction_loader(data, 8, seed=4))
    loader = instruction_loader(data, 8)
    assert len(loader) == len(list(loader)) == 7 and batches_of(loader) != batches_of(loader)
    n_targets = sum((targets != IGNORE).sum().item() for _, targets in loader)
    assert n_targets == sum(is_answer.sum().item() for _, is_answer in data)
    unmasked = sum((targets != IGNORE).sum().item() for _, targets in instruction_loader(data, 8, mask_prompt=False))
    assert unmasked == sum(lengths_of(data)) - len(data)
    packed = pack(data, 128)
    assert sum(len(inputs) for inputs, _ in instruction_loader(packed, 4)) == len(packed)


def test_batches_pad_little(tokenizer, entries):
    data = InstructionData(entries, tokenizer, 256)
    real = sum(lengths_of(data)) - len(data)
    bucketed = sum(inputs.numel() for inputs, _ in instruction_loader(data, 8))
    plain = sum(inputs.numel() for inputs, _ in DataLoader(data, 8, collate_fn=collate_instructions))
    assert bucketed < 1.15 * real < plain


class StopHereError(Exception):
    pass


def test_resumed_training_is_the_unbroken_one_bit_for_bit(tokenizer, entries, tmp_path):
    data, config = InstructionData(entries[:20], tokenizer, 128), GPTConfig(600, 128, 16, 2, 1, drop_rate=0.1)
    settings = {"epochs": 3, "lr": 1e-2, "progress": False, "seed": 5}

    def run(loss_fn=next_token_loss, **more):
        torch.manual_seed(2)
        model = lively(config)
        history = train(model, instruction_loader(data, 4, seed=5), loss_fn=loss_fn, **settings, **more)
        return model, history

    unbroken, history = run()
    calls = []

    def breaks(model, inputs, targets):
        calls.append(1)
        if len(calls) == 9:
            raise StopHereError
        return next_token_loss(model, inputs, targets)

    with pytest.raises(StopHereError):
        run(breaks, checkpoint=tmp_path / "run", eval_every=7)
    resumed, again = run(checkpoint=tmp_path / "run", resume=True)
    assert again.steps_done == history.steps_done == 15
    assert again.tokens_done == history.tokens_done
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_on_answers_learns_them(tokenizer, entries):
    taught = entries[::90]
    data = InstructionData(taught, tokenizer, 128, PHI3)
    torch.manual_seed(3)
    model = GPTModel(GPTConfig(600, 128, 48, 4, 2))
    assert next_token_loss(model, *collate_instructions(list(data))) > 6
    train(model, instruction_loader(data, 4), epochs=150, lr=5e-3, min_lr=5e-4, warmup_steps=5, progress=False)
    assert next_token_loss(model, *collate_instructions(list(data))) < 0.05
    answers = respond(model, tokenizer, taught, 40, template=PHI3)
    assert answers == [entry["output"] for entry in taught] and len(set(answers)) == 4


# --- answers ---------------------------------------------------------------------------------------------------------


def answer_alone(model, tokenizer, entry, n_new, template=ALPACA):
    """Greedy, one entry, no cache, no batch: written from the model's logits."""
    prompt = tokenizer.encode_ordinary(format_prompt(entry, template))[-max(1, 128 - n_new) :]
    ids = list(prompt)
    for _ in range(n_new):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] == tokenizer.eot_token:
            break
    return extract_response(template.answer + tokenizer.decode(ids[len(prompt) :]), template)


@pytest.mark.parametrize("template", [ALPACA, PHI3], ids=["alpaca", "phi3"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_answers_equal_one_at_a_time_and_keep_their_order(model, tokenizer, entries, template, batch_size):
    asked = entries[:8]
    alone = [answer_alone(model, tokenizer, entry, 12, template) for entry in asked]
    assert len(set(alone)) > 5  # lively enough for an exchange to be seen
    assert respond(model, tokenizer, asked, 12, template=template, batch_size=batch_size) == alone
    backwards = respond(model, tokenizer, asked[::-1], 12, template=template, batch_size=batch_size)
    assert backwards == alone[::-1]
    assert respond(model, tokenizer, asked, 12, template=template, use_cache=False) == alone


def test_answer_stops_at_the_end_of_text(model, tokenizer, entries):
    """A model that says <|endoftext|> after the first token that it likes best."""
    stopping = lively(CONFIG, seed=1)
    with torch.no_grad():
        stopping.token_embedding.weight[tokenizer.eot_token] += 3 * stopping.final_norm.bias
    answers = respond(stopping, tokenizer, entries[:6], 30)
    prompt = tokenizer.encode_ordinary(format_prompt(entries[0]))
    assert generate(stopping, prompt, 30, eos_id=tokenizer.eot_token).shape[1] < len(prompt) + 30  # it does stop
    assert answers == [answer_alone(stopping, tokenizer, entry, 30) for entry in entries[:6]]
    assert all("<|endoftext|>" not in answer for answer in answers)


@pytest.mark.parametrize("n_new", [12, 127, 128, 150])
def test_prompt_longer_than_the_context_loses_its_oldest_tokens(model, tokenizer, n_new):
    long = {"instruction": "Shorten this.", "input": STORY[:1500], "output": "x"}
    [short, answer] = respond(model, tokenizer, [ROWS[0], long], n_new)
    kept = tokenizer.encode_ordinary(format_prompt(long))[-(128 - min(n_new, 32)) :]  # the context is 128
    assert len(kept) == (116 if n_new == 12 else 96)
    new = generate(model, kept, n_new, eos_id=tokenizer.eot_token)[0, len(kept) :].tolist()
    assert answer == extract_response(ALPACA.answer + tokenizer.decode(new))
    if n_new == 12:
        assert short == answer_alone(model, tokenizer, ROWS[0], 12)


def test_no_entries_and_no_new_tokens(model, tokenizer):
    assert respond(model, tokenizer, []) == []
    assert respond(model, tokenizer, ROWS, 0) == ["", "", ""]


def test_sampling_settings_reach_generate(model, tokenizer, entries, monkeypatch):
    seen = []

    def watch(*args, **settings):
        seen.append(settings)
        return generate(*args, **settings)

    monkeypatch.setattr(instructions, "generate", watch)
    wanted = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1}

    def sampled(seed):
        generator = torch.Generator().manual_seed(seed)
        return respond(model, tokenizer, entries[:6], 10, batch_size=4, generator=generator, **wanted)

    assert sampled(0) == sampled(0) != sampled(1)
    assert len(seen) == 6 and all(wanted.items() <= settings.items() for settings in seen)
    assert {settings["eos_id"] for settings in seen} == {tokenizer.eot_token}
    with pytest.raises(ValueError, match="temperature is -1"):
        respond(model, tokenizer, ROWS, 5, temperature=-1)


def test_answering_leaves_the_model_in_its_mode(tokenizer):
    model = lively(GPTConfig(600, 128, 32, 4, 2, drop_rate=0.5), seed=1).train()
    answers = respond(model, tokenizer, ROWS, 10)
    assert model.training and answers == respond(model.eval(), tokenizer, ROWS, 10)


# --- files of answers, and transformers' chats -----------------------------------------------------------------------


def test_responses_come_back(tmp_path, tokenizer):
    path, answers = tmp_path / "responses.json", ["Blue.", "five \U0001f600\n", '"{}"']
    save_responses(path, ROWS, answers)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows == [row | {"model_response": answer} for row, answer in zip(ROWS, answers, strict=True)]
    assert rows == read_entries(path) and check_entries(rows) == (ROWS, [])
    assert "漢字" in path.read_text(encoding="utf-8") and "model_response" not in ROWS[0]
    save_responses(str(path), ROWS[:1], ["Red."])
    assert [row["model_response"] for row in read_entries(path)] == ["Red."]
    assert [file.name for file in tmp_path.iterdir()] == ["responses.json"]


def test_broken_off_writing_leaves_the_old_responses(tmp_path, monkeypatch):
    path = tmp_path / "responses.json"
    save_responses(path, ROWS[:1], ["Red."])
    before, write_text = path.read_bytes(), Path.write_text

    def half(self, text, **kwargs):
        write_text(self, text[: len(text) // 2], **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space"):
        save_responses(path, ROWS, ["a", "b", "c"])
    assert path.read_bytes() == before
    with pytest.raises(TypeError):
        save_responses(path, ROWS[:1], [torch.tensor(1)])
    assert path.read_bytes() == before


def test_as_many_responses_as_entries(tmp_path):
    with pytest.raises(ValueError, match="there are 3 entries and 2 responses"):
        save_responses(tmp_path / "a.json", ROWS, ["a", "b"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["Name a colour.", "It's \"so\"\n\n{{ x }} {% if %} 漢字 <b>&amp;", *NASTY])
def test_chat_template_equals_format_prompt(folder, tokenizer, text):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    entry, asked = {"instruction": text, "input": "", "output": "Blue."}, [{"role": "user", "content": text}]
    assert theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == format_prompt(entry)
    ids = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode_ordinary(format_prompt(entry))
    told = theirs.apply_chat_template([*asked, {"role": "assistant", "content": "Blue."}], tokenize=False)
    assert told == format_prompt(entry) + "Blue.<|endoftext|>"
    assert extract_response(told) == "Blue."


def test_chat_template_knows_an_input(folder):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    entry = {"instruction": "Is it red?", "input": "A rose.", "output": "Yes."}
    asked = [{"role": "user", "content": f"{entry['instruction']}\n\n### Input:\n{entry['input']}"}]
    told = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert told == format_prompt(entry)


def test_answer_loss_is_the_loss_of_what_counts(model, tokenizer, entries):
    data = InstructionData(entries[:6], tokenizer, 128)
    inputs, targets = collate_instructions([data[i] for i in range(6)])
    gradients = []
    for loss_fn in (next_token_loss, answer_loss):
        model.zero_grad()
        loss = loss_fn(model, inputs, targets)
        loss.backward()
        gradients.append((loss.detach(), model.token_embedding.weight.grad.clone()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    nothing = torch.full_like(targets, -100)
    assert answer_loss(model, inputs, nothing) == 0  # no target counts: no loss, and no error
    with torch.no_grad():
        torch.testing.assert_close(answer_loss(model, inputs, targets), gradients[0][0], rtol=1e-4, atol=1e-6)
    model.zero_grad()


def test_pipeline_of_transformers_gives_our_answers(folder, model, tokenizer, entries):
    import transformers

    pipe = transformers.pipeline("text-generation", model=str(folder))
    asked = [entry for entry in entries if not entry["input"]][:3]
    for entry, ours in zip(asked, respond(model, tokenizer, asked, 10), strict=True):
        chat = [{"role": "user", "content": entry["instruction"]}]
        said = pipe(chat, max_new_tokens=10, do_sample=False)[0]["generated_text"][-1]
        assert said["role"] == "assistant"
        assert extract_response(ALPACA.answer + said["content"]) == ours


# --- what must not pass ----------------------------------------------------------------------------------------------


def test_half_surrogates_are_written_as_replacement_characters(tmp_path):
    save_responses(tmp_path / "a.json", [{"instruction": "\ud83d"}], ["a \udc00 b"])
    assert read_entries(tmp_path / "a.json") == [{"instruction": "\ufffd", "model_response": "a \ufffd b"}]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(self, text, **kwargs):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for path in (tmp_path / "no" / "a.json", tmp_path / "file" / "a.json", tmp_path):
        with pytest.raises(OSError, match=rf"^\[Errno \d+\] .*: '{path}'$"):
            save_responses(path, ROWS[:1], ["Red."])
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device: '.*a.json'$"):
        save_responses(tmp_path / "a.json", ROWS[:1], ["Red."])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("asked", ["Name a colour.", ROWS[0]])
def test_one_entry_is_no_list_of_entries(model, tokenizer, asked):
    with pytest.raises(TypeError, match="a list is needed here, not one (str|dict)"):
        respond(model, tokenizer, asked, 5)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_no_size_are_no_empty_answers(model, tokenizer, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        respond(model, tokenizer, ROWS, 5, batch_size=batch_size)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5}])
def test_answers_hold_no_id_that_the_tokenizer_does_not_have(tokenizer, sampling):
    model = lively(GPTConfig(704, 128, 32, 4, 2, tie_weights=False), seed=1)
    assert tokenizer.n_vocab < 704
    with torch.no_grad():
        model.head.weight[tokenizer.n_vocab :] *= 50  # the model likes them best
    assert len(respond(model, tokenizer, ROWS, 20, **sampling)) == len(ROWS)
