"""Evaluation and choices: scores beside `transformers`, perplexity by hand, choices of which each rule picks one."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from shared.checkpoints import save_model
from shared.choices import (
    by_every_rule,
    last_words,
    minimal_pairs,
    mmlu_items,
    multiple_choice,
    score_choices,
)
from shared.data import readers
from shared.evaluation import (
    cohen_kappa,
    distinct_n,
    overlap,
    pairwise,
    perplexity,
    repetition,
    score_completions,
    token_losses,
)
from shared.gpt import GPTConfig, GPTModel
from shared.metrics import wilson
from shared.tokenizer import BPETokenizer
from tests.test_attention_and_gpt import lively

ROOT = Path(__file__).resolve().parents[1]
STORY = (ROOT / "shared/data/samples/the-lamp-room.txt").read_text(encoding="utf-8")
C = 24
CONFIG = GPTConfig(400, C, emb_dim=32, n_heads=4, n_layers=2, drop_rate=0.5)
TEXTS = ["The lamp.", "naïve 漢字 \U0001f600", STORY[:400], "a", "<|endoftext|>"]


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer().train(STORY, CONFIG.vocab_size).to_tiktoken("x")


@pytest.fixture(scope="module")
def model():
    return lively(CONFIG, seed=1)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, model, tokenizer):
    import transformers

    folder = tmp_path_factory.mktemp("models") / "my_gpt"
    save_model(model, tokenizer, folder)
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def unigram(losses):
    """A model that gives token i the probability exp(-losses[i]), whatever came before: losses [V]."""
    model = GPTModel(GPTConfig(len(losses), C, 4, 2, 1, tie_weights=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.final_norm.bias[0] = 1
        model.head.weight[:, 0] = -torch.as_tensor(losses)
    return model.eval()


@torch.no_grad()
def their_losses(theirs, ids):
    """The plain way: each token's loss from all logits of the tokens before it (at most C of them)."""
    losses = []
    for t in range(1, len(ids)):
        logits = theirs(torch.tensor([ids[max(0, t - C) : t]])).logits[0, -1]
        losses.append(-logits.log_softmax(-1)[ids[t]].item())
    return losses


# --- losses of tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, C, C + 1, C + 2, 2 * C + 5, 100])
def test_token_losses_equal_transformers(model, theirs, n):
    ids = torch.randint(0, 400, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    assert_close(token_losses(model, ids, 1), torch.tensor(their_losses(theirs, ids)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 5, C // 2, C])
@torch.no_grad()
def test_window_moves_by_the_stride(model, theirs, stride):
    ids = torch.randint(0, 400, (3 * C + 7,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = []
    for t in range(1, len(ids)):  # token t is predicted in the first window that ends with it or after it
        end = C + 1 if t <= C else min(len(ids), C + 1 + stride * -(-(t - C) // stride))
        start = max(0, end - 1 - C)
        expected.append(-theirs(torch.tensor([ids[start:t]])).logits[0, -1].log_softmax(-1)[ids[t]].item())
    assert_close(token_losses(model, ids, stride), torch.tensor(expected), rtol=0, atol=1e-4)


def pairs_of_many_lengths(n=23, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def some(low, high):
        k = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(0, 400, (k,), generator=generator).tolist()

    return [(some(1, 2 * C), some(1, 12)) for _ in range(n)] + [([5], some(2 * C, 2 * C + 1)), (some(C, C + 1), [7])]


def test_score_completions_equals_a_plain_loop_over_transformers(model, theirs):
    pairs = pairs_of_many_lengths()
    assert any(len(a) + len(b) > C + 1 for a, b in pairs) and any(len(a) + len(b) < C for a, b in pairs)
    scored = score_completions(model, pairs, batch_size=4)
    assert len(scored) == len(pairs)
    for (context, completion), (losses, greedy) in zip(pairs, scored, strict=True):
        row = (context + completion)[-C - 1 :]
        n = min(len(completion), C)
        with torch.no_grad():
            logits = theirs(torch.tensor([row[:-1]])).logits[0, -n:]
        targets = torch.tensor(row[-n:])
        expected = -logits.log_softmax(-1)[torch.arange(n), targets]
        assert_close(losses, expected, rtol=0, atol=1e-4)
        assert greedy.tolist() == (logits.argmax(-1) == targets).tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_do_not_depend_on_batch_or_order(model, batch_size):
    pairs = pairs_of_many_lengths()
    reference = [score_completions(model, [pair])[0] for pair in pairs]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
    scored = score_completions(model, [pairs[i] for i in order], batch_size)
    for i, (losses, greedy) in zip(order, scored, strict=True):
        assert_close(losses, reference[i][0], rtol=0, atol=1e-4)
        assert torch.equal(greedy, reference[i][1])


def test_greedy_choices_are_found(model):
    ids = [3, 4, 5]
    with torch.no_grad():
        for _ in range(6):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    wrong = [*ids[:-1], (ids[-1] + 1) % 400]
    (_, right), (_, all_but_one) = score_completions(model, [(ids[:3], ids[3:]), (wrong[:3], wrong[3:])])
    assert right.tolist() == [True] * 6 and all_but_one.tolist() == [True] * 5 + [False]


def test_nothing_to_complete(model):
    assert score_completions(model, []) == []
    (none, _), (losses, _) = score_completions(model, [([1, 2], []), ([1, 2], [3])])
    assert len(none) == 0 and len(losses) == 1


# --- perplexity ------------------------------------------------------------------------------------------------------


def test_perplexity_by_hand(tokenizer):
    losses = torch.linspace(1, 9, 400)
    losses = losses + (-losses).exp().sum().log()  # probabilities that sum to 1
    result = perplexity(unigram(losses), tokenizer, TEXTS)
    nats = [sum(losses[i].item() for i in tokenizer.encode_ordinary(text)) for text in TEXTS]
    tokens = [len(tokenizer.encode_ordinary(text)) for text in TEXTS]
    sizes = [len(text.encode("utf-8")) for text in TEXTS]
    assert result.sums.shape == (len(TEXTS), 3)
    assert_close(result.sums, torch.tensor([nats, tokens, sizes], dtype=torch.float64).T, rtol=1e-5, atol=0)
    assert result.per_token == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-5)


def test_uniform_model_gives_the_size_of_the_vocabulary(tokenizer):
    result = perplexity(unigram([0.0] * 400), tokenizer, TEXTS)
    assert result.per_token == pytest.approx(400, rel=1e-5)
    assert result.per_token_interval == pytest.approx((400, 400), rel=1e-4)
    n, size = result.sums[:, 1:].sum(0).tolist()
    assert result.bits_per_byte == pytest.approx(math.log2(400) * n / size, rel=1e-5)


def test_bits_per_byte_compares_across_tokenizers(tokenizer):
    """A fair coin for each byte's value costs 8 bits a byte, in whatever pieces the bytes come."""
    sizes = torch.tensor([len(tokenizer.decode_single_token_bytes(i)) for i in range(399)] + [50.0])
    result = perplexity(unigram(sizes * math.log(256)), tokenizer, TEXTS[:4])
    one_byte = BPETokenizer().train("ab", 257).to_tiktoken("bytes")
    # unigram's head is not normalised by itself: the softmax adds the same constant to every token
    constant = (-sizes * math.log(256)).exp().sum().log().item()
    n, size = result.sums[:, 1:].sum(0).tolist()
    assert result.bits_per_byte == pytest.approx(8 + constant * n / size / math.log(2), rel=1e-5)
    bytewise = perplexity(unigram([0.0] * one_byte.n_vocab), one_byte, TEXTS[:4])
    assert bytewise.bits_per_byte == pytest.approx(math.log2(one_byte.n_vocab), rel=1e-5)
    assert bytewise.sums[:, 2].tolist() == result.sums[:, 2].tolist()


def test_perplexity_equals_transformers(model, theirs, tokenizer):
    short = ["The lamp.", "naïve", "a b c"]
    nats = [sum(their_losses(theirs, [tokenizer.eot_token, *tokenizer.encode_ordinary(text)])) for text in short]
    result = perplexity(model, tokenizer, short)
    assert_close(result.sums[:, 0], torch.tensor(nats, dtype=torch.float64), rtol=0, atol=1e-3)


def test_intervals_bracket_and_shrink(model, tokenizer):
    pieces = [STORY[i : i + 60] for i in range(0, 2400, 60)]
    few, many = perplexity(model, tokenizer, pieces[:8]), perplexity(model, tokenizer, pieces)
    for result in (few, many):
        assert result.per_token_interval[0] < result.per_token < result.per_token_interval[1]
        assert result.bits_per_byte_interval[0] < result.bits_per_byte < result.bits_per_byte_interval[1]
    (low, high), (lowest, highest) = many.bits_per_byte_interval, few.bits_per_byte_interval
    assert high - low < highest - lowest
    assert perplexity(model, tokenizer, pieces[:8]).per_token_interval == few.per_token_interval


def test_only_the_continuation_counts(model, theirs, tokenizer):
    context, answer = "The lamp room was", " dark and cold."
    result = perplexity(model, tokenizer, [(context, answer)])
    before, ids = tokenizer.encode_ordinary(context), tokenizer.encode_ordinary(answer)
    expected = their_losses(theirs, [tokenizer.eot_token, *before, *ids])[-len(ids) :]
    assert result.sums[0].tolist() == [pytest.approx(sum(expected), abs=1e-3), len(ids), len(answer)]
    long = perplexity(model, tokenizer, [(STORY[:2000], answer)])
    assert long.sums[0, 1:].tolist() == result.sums[0, 1:].tolist()
    assert perplexity(model, tokenizer, [("", answer)]).per_token == perplexity(model, tokenizer, [answer]).per_token


@pytest.mark.parametrize("texts", [[], [""], ["", ("context", "")]])
def test_no_text_to_predict(model, tokenizer, texts):
    with pytest.raises(ValueError, match="there is no text to predict"):
        perplexity(model, tokenizer, texts)
    assert len(perplexity(model, tokenizer, [*texts, "a"]).sums) == 1


def test_model_keeps_its_mode_and_dropout_stays_out(model, tokenizer):
    twin = lively(CONFIG, seed=1).train()
    assert perplexity(twin, tokenizer, TEXTS).per_token == perplexity(model, tokenizer, TEXTS).per_token
    items = [{"query": "The", "choices": ["lamp", "room"], "gold": 0}]
    assert multiple_choice(twin, tokenizer, items) and twin.training and not model.training
    twin.head.forward = None  # the call fails
    for call in (lambda: perplexity(twin, tokenizer, TEXTS), lambda: multiple_choice(twin, tokenizer, items)):
        with pytest.raises(TypeError):
            call()
        assert twin.training


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="shots is -1"):
        mmlu_items([], shots=-1)
    with pytest.raises(ValueError, match="n is 0; a gram has at least one word"):
        repetition("a b a b", 0)
    assert repetition("a b", 3) == 0.0 == repetition("", 1) and repetition("a a a a", 1) == 0.75


# --- multiple choice -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_ways(tokenizer):
    """(model, choices) of which the sum picks the first, the mean over tokens the second, over bytes the third."""
    tokens = sorted(range(256, 399), key=lambda i: -len(tokenizer.decode_single_token_bytes(i)))
    words = [i for i in tokens if tokenizer.decode_single_token_bytes(i).startswith(b" ")]
    long = tokenizer.decode(words[:2])[1:]
    choices = ["a", "q7z", long]
    ids = [tokenizer.encode_ordinary(" " + choice) for choice in choices]
    assert len(ids[0]) == 1 and len(ids[1]) >= 3 and len(ids[2]) == 2 and not set(ids[1]) & set(ids[2] + ids[0])
    losses = torch.full((400,), 12.0)
    for row, loss in zip(ids, (1.6, 1.3, 1.5), strict=True):
        losses[row] = loss
    assert (-losses).exp().sum() < 2.5
    return unigram(losses), choices


@pytest.mark.parametrize(("by", "picked"), [("sum", 0), ("token", 1), ("byte", 2)])
def test_each_rule_picks_its_own_choice(tokenizer, three_ways, by, picked):
    model, choices = three_ways
    for gold in range(3):
        result = multiple_choice(model, tokenizer, [{"query": "Q:", "choices": choices, "gold": gold}], by=by)
        assert result.right.tolist() == [gold == picked] and result.share == (gold == picked)


@pytest.mark.parametrize("by", ["sum", "token", "byte"])
def test_choices_equal_a_plain_loop_over_transformers(model, theirs, tokenizer, by):
    items = readers.hellaswag(ROOT / "shared/data/samples/hellaswag.jsonl")[:6]
    items = [item | {"choices": [" ".join(choice.split()[:6]) for choice in item["choices"]]} for item in items]
    items += [{"query": "The lamp room", "choices": ["was dark.", "is", "漢字"], "gold": 1}]
    right = []
    for item in items:
        values = []
        for choice in item["choices"]:
            ids = tokenizer.encode_ordinary(" " + choice)
            row = [tokenizer.eot_token, *tokenizer.encode_ordinary(item["query"]), *ids][-C - 1 :]
            n = len(ids)
            with torch.no_grad():
                logits = theirs(torch.tensor([row[:-1]])).logits[0, -n:].log_softmax(-1)
            total = -sum(logits[k, row[-n + k]].item() for k in range(n))
            values.append(total / {"sum": 1, "token": len(ids), "byte": len((" " + choice).encode())}[by])
        right.append(values.index(min(values)) == item["gold"])
    result = multiple_choice(model, tokenizer, items, by=by)
    assert result.right.tolist() == right
    assert result.share == sum(right) / 7 and result.interval == wilson(sum(right), 7)
    assert result.chance == pytest.approx((6 * 0.25 + 1 / 3) / 7)


def test_items_that_do_not_fit_are_counted_once(model, tokenizer):
    fits = {"query": "a", "choices": ["b", "c"], "gold": 0}
    long = {"query": STORY[:300], "choices": ["b", "c"], "gold": 0}
    whole = tokenizer.decode(tokenizer.encode_ordinary(" " + STORY)[:C])[1:]
    assert len(tokenizer.encode_ordinary(" " + whole)) == C  # leaves no room for "a"
    one_long_choice = {"query": "a", "choices": ["b", whole], "gold": 0}
    assert multiple_choice(model, tokenizer, [fits]).cut == 0
    assert multiple_choice(model, tokenizer, [long, fits, long, one_long_choice]).cut == 3
    query = tokenizer.decode(tokenizer.encode_ordinary(STORY)[: C - 1])
    assert len(tokenizer.encode_ordinary(query)) == C - 1  # with <|endoftext|> before it, and one token after it: C + 1
    exact = {"query": query, "choices": ["a"], "gold": 0}
    assert len(tokenizer.encode_ordinary(" a")) == 1
    assert multiple_choice(model, tokenizer, [exact]).cut == 0
    assert multiple_choice(model, tokenizer, [exact | {"choices": ["a a"]}]).cut == 1


@pytest.mark.parametrize("gold", [-1, 2, 5, None, "A", 0.5])
def test_gold_that_is_no_choice(model, tokenizer, gold):
    good = {"query": "a", "choices": ["b", "c"], "gold": 0}
    with pytest.raises(ValueError, match=f"item 1: gold is {gold}; there are 2 choices"):
        multiple_choice(model, tokenizer, [good, good | {"gold": gold}])


def test_no_items_no_choices_no_such_rule(model, tokenizer):
    with pytest.raises(ValueError, match="there are no items"):
        multiple_choice(model, tokenizer, [])
    with pytest.raises(ValueError, match="item 0: gold is 0; there are 0 choices"):
        multiple_choice(model, tokenizer, [{"query": "a", "choices": [], "gold": 0}])
    with pytest.raises(ValueError, match="by is 'length'; it must be sum, token or byte"):
        multiple_choice(model, tokenizer, [], by="length")


def test_a_model_that_knows_nothing_is_at_chance(tokenizer):
    items = [{"query": "a", "choices": ["b", "c", "d", "e"], "gold": i % 4} for i in range(100)]
    result = multiple_choice(unigram([0.0] * 400), tokenizer, items)
    assert result.share == result.chance == 0.25 and result.interval[0] < 0.25 < result.interval[1]


@pytest.mark.parametrize("name", ["hellaswag", "arc_easy"])
def test_bundled_samples_can_be_scored(tokenizer, name):
    model = lively(replace(CONFIG, context_length=128))
    reader = {"hellaswag": readers.hellaswag, "arc_easy": readers.arc}[name]
    items = reader(ROOT / f"shared/data/samples/{name}.jsonl")[:10]
    result = multiple_choice(model, tokenizer, items)
    assert len(result.right) == 10 and 0 <= result.interval[0] <= result.share <= result.interval[1] <= 1


# --- minimal pairs and last words ------------------------------------------------------------------------------------

PAIRS = [{"good": "The lamp is.", "bad": "The lamp are.", "phenomenon": "a"},
         {"good": "A room", "bad": "A dark room", "phenomenon": "b"},
         {"good": "She saw it.", "bad": "It she saw.", "phenomenon": "a"}]  # fmt: skip


def test_minimal_pairs_equal_transformers(model, theirs, tokenizer):
    nats = [[sum(their_losses(theirs, [tokenizer.eot_token, *tokenizer.encode_ordinary(pair[which])]))
             for which in ("good", "bad")] for pair in PAIRS]  # fmt: skip
    right = [good < bad for good, bad in nats]
    found = minimal_pairs(model, tokenizer, PAIRS)
    assert list(found) == ["all", "a", "b"] and found["all"].right.tolist() == right
    assert found["a"].right.tolist() == [right[0], right[2]] and found["b"].right.tolist() == [right[1]]
    assert found["all"].interval == wilson(sum(right), 3) and found["all"].chance == 0.5
    turned = [pair | {"good": pair["bad"], "bad": pair["good"]} for pair in PAIRS]
    assert minimal_pairs(model, tokenizer, turned)["all"].right.tolist() == [not one for one in right]


def test_minimal_pairs_of_a_damaged_model(tokenizer):
    broken = lively(CONFIG)
    with torch.no_grad():
        broken.final_norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="its weights are damaged"):
        minimal_pairs(broken, tokenizer, PAIRS)
    same = [{"good": "a", "bad": "a", "phenomenon": "a"}]
    assert minimal_pairs(lively(CONFIG), tokenizer, same)["all"].share == 0  # no preference is no knowledge


@torch.no_grad()
def test_last_words_are_those_of_greedy_decoding(model, theirs, tokenizer):
    """Of what transformers writes, whole words are right, and the same word with another last token is wrong."""
    texts, right = ["The dark lamp", "a b c"], []
    for before in ("The lamp room was", "He saw the", "In the", "A lamp"):
        ids = [tokenizer.eot_token, *tokenizer.encode_ordinary(before)]
        new = theirs.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, pad_token_id=0)[0, len(ids) :]
        word = tokenizer.decode(new.tolist())
        if word.startswith(" ") and word.count(" ") == 1 and tokenizer.encode_ordinary(word) == new.tolist():
            texts.append(before + word)
    for text in texts:
        before, _, word = text.rpartition(" ")
        ids, new = [tokenizer.eot_token, *tokenizer.encode_ordinary(before)], tokenizer.encode_ordinary(" " + word)
        wrote = theirs.generate(torch.tensor([ids]), max_new_tokens=len(new), do_sample=False, pad_token_id=0)
        right.append(wrote[0, len(ids) :].tolist() == new)
    found, surprise = last_words(model, tokenizer, texts)
    assert found.right.tolist() == right
    expected = perplexity(model, tokenizer, [(a, f" {b}") for a, _, b in (text.rpartition(" ") for text in texts)])
    assert_close(surprise.sums, expected.sums, rtol=1e-4, atol=1e-4)
    assert surprise.bits_per_byte_interval == pytest.approx(expected.bits_per_byte_interval, rel=1e-4)


def test_all_tokens_of_a_last_word_must_be_right(tokenizer):
    ids = tokenizer.encode_ordinary(" q7z")
    losses = torch.full((400,), 12.0)
    losses[ids[0]] = 0.1
    assert len(ids) > 1 and last_words(unigram(losses), tokenizer, ["a q7z"])[0].share == 0
    one = tokenizer.encode_ordinary(" a")
    assert len(one) == 1
    losses[one[0]] = 0.0
    assert last_words(unigram(losses), tokenizer, ["b a a", "a b, c a", "a"])[0].share == 1


def test_guessing_a_last_word_is_drawing_one_of_the_others(tokenizer):
    found = last_words(unigram([0.0] * 400), tokenizer, ["one two one", "one, one", "three four five six"])[0]
    assert found.chance == pytest.approx((1 / 2 + 1 + 0) / 3)


# --- the question is read once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3,), (1, 5, 2), (4, 4)])
def test_choices_after_one_question_equal_whole_texts(model, theirs, sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    query, *choices = (torch.randint(0, 400, (n,), generator=generator).tolist() for n in (9, *sizes))
    for losses, ids in zip(score_choices(model, query, choices), choices, strict=True):
        assert_close(losses, torch.tensor(their_losses(theirs, query + ids)[-len(ids) :]), rtol=0, atol=1e-4)


def test_every_rule_in_one_reading(tokenizer, three_ways):
    model, choices = three_ways
    found = by_every_rule(model, tokenizer, [{"query": "Q:", "choices": choices, "gold": gold} for gold in range(3)])
    assert {rule: c.right.tolist() for rule, c in found.items()} == {
        "sum": [True, False, False], "token": [False, True, False], "byte": [False, False, True]}  # fmt: skip


# --- MMLU ------------------------------------------------------------------------------------------------------------


def record(subject, question, gold=1):
    return {"subject": subject, "question": question, "choices": ["one", "two", "three", "four"], "gold": gold}


DEV = [record("high_school_maths", f"Solved {i}?", gold=i % 4) for i in range(5)] + [record("law", "Legal?")] * 5


def test_mmlu_without_shots_letter_by_letter():
    [item] = mmlu_items([record("high_school_maths", "What is 1 + 1?")])
    assert item == {
        "query": "The following are multiple choice questions (with answers) about high school maths.\n\n"
                 "What is 1 + 1?\nA. one\nB. two\nC. three\nD. four\nAnswer:",
        "choices": ["A", "B", "C", "D"], "gold": 1, "shots": 0,
    }  # fmt: skip


def test_mmlu_shots_are_of_the_same_subject_and_in_order():
    items = mmlu_items([record(subject, "New?") for subject in ("high_school_maths", "law", "art")], DEV, shots=3)
    assert [item["shots"] for item in items] == [3, 3, 0]
    query = items[0]["query"]
    assert query.count("Answer:") == 4 and "Legal" not in query and query.endswith("Answer:")
    assert [query.index(f"Solved {i}?") for i in range(3)] == sorted(query.index(f"Solved {i}?") for i in range(3))
    for i in range(3):
        assert f"Solved {i}?\nA. one\nB. two\nC. three\nD. four\nAnswer: {'ABCD'[i]}\n\n" in query
    assert "Solved 3" not in query and items[1]["query"].count("Legal?") == 3
    assert [len(DEV)] + [item["shots"] for item in mmlu_items(DEV[:1], DEV, shots=9)] == [10, 5]


@pytest.mark.parametrize("max_tokens", [1, 150, 200, 250, 1000])
def test_mmlu_takes_as_many_shots_as_fit(tokenizer, max_tokens):
    asked = record("high_school_maths", "New?")
    [item] = mmlu_items([asked], DEV, 5, tokenizer, max_tokens)

    def n_tokens(shots):
        [item] = mmlu_items([asked], DEV, shots)
        return 1 + max(len(tokenizer.encode_ordinary(f"{item['query']} {letter}")) for letter in "ABCD")

    assert item["query"] == mmlu_items([asked], DEV, item["shots"])[0]["query"]
    assert n_tokens(item["shots"]) <= max_tokens or item["shots"] == 0
    assert item["shots"] == 5 or n_tokens(item["shots"] + 1) > max_tokens
    if max_tokens == 200:
        assert 0 < item["shots"] < 5


def test_mmlu_with_shots_that_fit_is_not_cut(tokenizer):
    model = lively(GPTConfig(400, 256, 32, 4, 1), seed=2)
    asked = readers.mmlu(ROOT / "shared/data/samples/mmlu.jsonl")
    records = [r for split in asked.values() for r in split][:8]
    items = mmlu_items(records, asked["dev"], 5, tokenizer, 257)
    assert len({len(tokenizer.encode_ordinary(f" {letter}")) for letter in "ABCD"}) > 1  # a letter may be two tokens
    result = multiple_choice(model, tokenizer, items)
    bare = [1 + len(tokenizer.encode_ordinary(item["query"])) for item in items if item["shots"] == 0]
    assert result.cut <= sum(n + 2 > 257 for n in bare) and result.chance == 0.25
    assert any(item["shots"] for item in items)


# --- preferences and raters ------------------------------------------------------------------------------------------


def test_pairwise_counts_by_hand():
    result = pairwise([5, 3, 2, None, 4, 1.5], [4, 3, 3, 5, None, 1])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.win_rate == pytest.approx(2.5 / 4)
    assert 0 <= result.interval[0] <= result.win_rate <= result.interval[1] <= 1


def test_pairwise_is_symmetric_and_sure_where_all_agree():
    a, b = [3, 4, 5, 1, 2, 2, 5, 3] * 5, [1, 4, 2, 2, 2, 1, 1, 4] * 5
    one, two = pairwise(a, b), pairwise(b, a)
    assert (one.wins, one.ties, one.losses) == (two.losses, two.ties, two.wins)
    assert one.win_rate == pytest.approx(1 - two.win_rate)
    assert one.interval == pytest.approx((1 - two.interval[1], 1 - two.interval[0]), abs=1e-6)
    assert pairwise([2] * 9, [1] * 9).interval == (1.0, 1.0) and pairwise([1] * 9, [1] * 9).win_rate == 0.5
    wide = pairwise(a[:8], b[:8]).interval
    assert wide[1] - wide[0] > one.interval[1] - one.interval[0]


@pytest.mark.parametrize(("a", "b"), [([], []), ([None, 1], [1, None])])
def test_pairwise_without_pairs(a, b):
    with pytest.raises(ValueError, match="there is no pair of scores to compare"):
        pairwise(a, b)


def test_pairwise_of_unequal_lists():
    with pytest.raises(ValueError):
        pairwise([1, 2], [1])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_kappa_equals_sklearn(ratings):
    from sklearn import metrics as oracle

    first, second = map(list, zip(*ratings, strict=True))
    ours = cohen_kappa(first, second)
    if set(first) == set(second) and len(set(first)) == 1:
        assert math.isnan(ours)  # chance alone would always agree; what sklearn says here differs by version
        return
    assert ours == pytest.approx(oracle.cohen_kappa_score(first, second), abs=1e-12)
    assert ours == pytest.approx(cohen_kappa(second, first), abs=1e-12)


def test_kappa_by_hand():
    assert cohen_kappa([1, 2, 1, 2], [1, 2, 1, 2]) == 1
    assert cohen_kappa([1, 1, 2, 2], [1, 2, 1, 2]) == 0
    assert cohen_kappa([1, 2], [2, 1]) == -1
    assert cohen_kappa(["a"] * 20 + ["b"] * 30, ["a"] * 15 + ["b"] * 5 + ["a"] * 10 + ["b"] * 20) == pytest.approx(0.4)
    assert math.isnan(cohen_kappa([1, 1], [1, 1])) and cohen_kappa([1, 1], [2, 2]) == 0


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1, 2])])
def test_kappa_needs_the_same_items(first, second):
    with pytest.raises(ValueError, match="two raters must rate the same items"):
        cohen_kappa(first, second)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "reference", "expected"), [
    ("The cat sat.", "the CAT sat", 1.0), ("cat", "dog", 0.0), ("", "", 0.0), ("...", "a", 0.0), ("a", "", 0.0),
    ("the the the cat", "the cat", 2 * 2 / 6), ("a b", "b c d", 2 * 1 / 5), ("Straße", "STRASSE", 1.0),
    ("की", "का", 0.0), ("मेरा नाम", "मेरा काम", 0.5), ("நான் அவன்", "நீ அவன்", 0.5),
])  # fmt: skip
def test_overlap_by_hand(answer, reference, expected):
    assert overlap(answer, reference) == pytest.approx(expected)


words = st.lists(st.sampled_from(["a", "b", "c", "d."]), max_size=12).map(" ".join)


@given(words, words)
@settings(max_examples=150, deadline=None)
def test_overlap_is_f1(answer, reference):
    a, b = Counter(answer.replace(".", "").split()), Counter(reference.replace(".", "").split())
    common = sum(min(a[word], b[word]) for word in a)
    value = overlap(answer, reference)
    assert 0 <= value <= 1 and value == overlap(reference, answer)
    if common:
        precision, recall = common / sum(a.values()), common / sum(b.values())
        assert value == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert value == 0


@given(st.lists(words, max_size=5), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_distinct_n_counts_grams_within_texts(texts, n):
    grams = []
    for text in texts:
        split = text.split()
        grams += [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]
    assert distinct_n(texts, n) == pytest.approx(len(set(grams)) / len(grams) if grams else 0)
    assert distinct_n(texts * 2, n) == pytest.approx(distinct_n(texts, n) / 2)


@given(words, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_repetition_is_what_stood_before(text, n):
    split, seen, again = text.split(), set(), 0
    grams = [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]
    for gram in grams:
        again += gram in seen
        seen.add(gram)
    assert repetition(text, n) == pytest.approx(again / len(grams) if grams else 0)


def test_repetition_of_a_loop():
    assert repetition("the cat sat on the mat") == 0 == repetition("") == repetition("a b")
    assert repetition("blue and " * 100) > 0.98
    assert distinct_n(["a b", "a b"], 2) == 0.5 and distinct_n([], 1) == 0


def test_results_can_be_written_as_json(model, tokenizer):
    """Numbers are Python's own, as tables and files need them."""
    shown = perplexity(model, tokenizer, TEXTS)
    choices = multiple_choice(model, tokenizer, [{"query": "a", "choices": ["b", "c"], "gold": 0}])
    preference = pairwise([1, 2], [2, 1])
    numbers = [shown.per_token, shown.per_token_interval, shown.bits_per_byte, shown.bits_per_byte_interval]
    numbers += [choices.share, choices.interval, choices.chance, choices.cut, preference.win_rate, preference.interval]
    assert json.loads(json.dumps(numbers))


# --- what must not pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sum", "token", "byte"])
@pytest.mark.parametrize("more", [1, 10 * C])
def test_a_choice_longer_than_the_context_is_refused(model, tokenizer, by, more):
    """Its loss would be that of its last tokens only, and divided by all of them it would win."""
    long = tokenizer.decode(tokenizer.encode_ordinary(STORY)[: C + more])
    n = len(tokenizer.encode_ordinary(" " + long))
    items = [{"query": "a", "choices": ["b", "c"], "gold": 0}, {"query": "a", "choices": ["b", long], "gold": 0}]
    with pytest.raises(ValueError, match=f"item 1: a choice has {n:,} tokens; the context holds {C}"):
        multiple_choice(model, tokenizer, items, by=by)


@pytest.mark.parametrize("by", ["sum", "token", "byte"])
def test_damaged_weights_are_at_no_chance(tokenizer, by):
    broken = lively(CONFIG, seed=1)
    with torch.no_grad():
        broken.blocks[0].norm1.weight[0] = math.nan
    items = [{"query": "a", "choices": ["b", "c", "d", "e"], "gold": i % 4} for i in range(8)]
    with pytest.raises(FloatingPointError, match="item 0: the model's loss is NaN; its weights are damaged"):
        multiple_choice(broken, tokenizer, items, by=by)


@pytest.mark.parametrize(("a", "b"), [([math.nan, 1.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, math.nan])])
def test_a_score_that_is_nan_is_no_tie(a, b):
    with pytest.raises(ValueError, match="a score is NaN"):
        pairwise(a, b)


@pytest.mark.parametrize(("half", "whole"), [("a \ud83d b", "a \ufffd b"), ("\ud83d\ude00", "\U0001f600"),
                                             ("\udc00", "\ufffd")])  # fmt: skip
def test_half_surrogates_count_as_what_the_tokenizer_reads(model, tokenizer, half, whole):
    found, expected = (perplexity(model, tokenizer, [text, ("Q " + text, text)]) for text in (half, whole))
    assert torch.equal(found.sums, expected.sums)
    for by in ("sum", "token", "byte"):
        items = [[{"query": text, "choices": ["b", text, "c"], "gold": 1}] for text in (half, whole)]
        found, expected = (multiple_choice(model, tokenizer, item, by=by) for item in items)
        assert found.share == expected.share


def test_one_text_is_no_list_of_texts(model, tokenizer):
    item = {"query": "a", "choices": ["b", "c"], "gold": 0}
    for call in (lambda: perplexity(model, tokenizer, "The lamp."), lambda: distinct_n("a b a b", 2),
                 lambda: multiple_choice(model, tokenizer, item), lambda: multiple_choice(model, tokenizer, "item"),
                 lambda: multiple_choice(model, tokenizer, [item | {"choices": "bc"}])):  # fmt: skip
        with pytest.raises(TypeError, match="a list is needed here, not one (str|dict)"):
            call()


def test_texts_may_come_one_by_one(model, tokenizer):
    items = [{"query": "a", "choices": ["b", "c"], "gold": i % 2} for i in range(4)]
    found, expected = multiple_choice(model, tokenizer, iter(items)), multiple_choice(model, tokenizer, items)
    assert torch.equal(found.right, expected.right)
    assert torch.equal(perplexity(model, tokenizer, iter(TEXTS)).sums, perplexity(model, tokenizer, TEXTS).sums)


@pytest.mark.parametrize("stride", [0, -1, C + 1, math.nan])
def test_a_stride_that_would_never_end_or_leave_tokens_out(model, stride):
    with pytest.raises(ValueError, match=f"stride is {stride}; it must be between 1 and the context length, {C}"):
        token_losses(model, list(range(3 * C)), stride)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_batches_of_no_size(model, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        score_completions(model, [([1], [2])], batch_size)


def test_a_hopeless_model_has_an_infinite_perplexity(tokenizer):
    found = perplexity(unigram([0.0] + [800.0] * 399), tokenizer, ["The lamp."])
    assert found.per_token == math.inf and found.bits_per_byte > 100


def test_mmlu_cannot_count_tokens_without_a_tokenizer():
    with pytest.raises(ValueError, match="max_tokens 50 .needs a tokenizer"):
        mmlu_items([record("law", "Legal?")], max_tokens=50)
