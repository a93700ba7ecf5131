"""Sampling, the cache, batches and streaming: against brute force, against no cache, against one row at a time."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from shared.generation import (
    KVCache,
    Sampling,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    next_logits,
    next_token_probs,
    sample,
    stream,
    window_start,
)
from shared.gpt import GPTConfig
from tests.test_attention_and_gpt import lively

CONFIG = GPTConfig(101, 16, 32, 4, 2)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [3, 3]]


@pytest.fixture(scope="module")
def model():
    return lively(CONFIG, seed=1)


def window_by_hand(n_tokens, context_length):
    """Forget half a context whenever the next token would not fit."""
    start = 0
    while n_tokens - start > context_length:
        start += max(1, context_length // 2)
    return start


@pytest.mark.parametrize("context_length", [1, 2, 3, 8, 17])
def test_window_start_equals_its_description(context_length):
    for n in range(1, 80):
        start = window_start(n, context_length)
        assert start == window_by_hand(n, context_length)
        assert 1 <= n - start <= context_length


def test_greedy_equals_a_plain_loop_also_past_the_context(model):
    tokens = PROMPTS[2].copy()
    for _ in range(60):
        window = tokens[window_by_hand(len(tokens), 16) :]
        tokens.append(model(torch.tensor([window]))[0, -1].argmax().item())
    assert generate(model, PROMPTS[2], 60)[0].tolist() == tokens
    assert len(set(tokens)) > 5  # the model is lively enough for the test to mean something


@pytest.mark.parametrize("n_new", [0, 1, 9, 60])
def test_cached_equals_uncached_and_batched_equals_single(model, n_new):
    batched = generate(model, PROMPTS, n_new)
    assert batched.shape == (4, 6 + n_new)
    assert torch.equal(batched, generate(model, PROMPTS, n_new, use_cache=False))
    for row, prompt in zip(batched.tolist(), PROMPTS, strict=True):
        assert row[: 6 - len(prompt)] == [0] * (6 - len(prompt))  # padded on the left
        assert row[6 - len(prompt) :] == generate(model, prompt, n_new)[0].tolist()


def test_prompts_longer_than_the_context(model):
    long = list(range(40))
    assert torch.equal(generate(model, [long, [1]], 20), generate(model, [long, [1]], 20, use_cache=False))
    assert generate(model, long, 3).shape == (1, 43)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=25), min_size=1, max_size=4), st.integers(1, 30))
def test_cached_logits_equal_uncached(prompts, n_new):
    model, histories = lively(CONFIG, seed=2), [list(p) for p in prompts]
    cache = KVCache(model, len(prompts))
    for _ in range(n_new):
        logits = next_logits(model, histories, cache)
        assert_close(logits, next_logits(model, histories), rtol=1e-4, atol=1e-4)
        for history, token in zip(histories, logits.argmax(dim=-1).tolist(), strict=True):
            history.append(token)


def test_rows_come_and_go(model):
    cache = KVCache(model, 4)
    texts = {0: [1, 2, 3], 2: [4, 5]}
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        rows = list(texts)
        assert_close(next_logits(model, list(texts.values()), cache, rows), next_logits(model, list(texts.values())),
                     rtol=1e-4, atol=1e-4)  # fmt: skip
        for row in rows:
            extra = 1 + step % 3 if row == 2 else 1  # row 2 sometimes gets several tokens at once
            texts[row] = texts[row] + torch.randint(0, 101, (extra,), generator=generator).tolist()
        if step == 5:
            texts[3], texts[1] = [9] * 20, [7]
        if step == 11:
            del texts[0]
            cache.free(0)
        if step == 14:
            texts[0] = [50, 51, 52]


def test_sampling_is_the_same_with_and_without_cache(model):
    def run(use_cache, seed=3):
        settings = dict(temperature=1.2, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.3)
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPTS, 40, use_cache=use_cache, generator=generator, **settings)

    assert torch.equal(run(True), run(False))
    assert not torch.equal(run(True), run(True, seed=4))


def test_settings_per_row():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(3, 1)
    drawn = [sample(logits, [[3]] * 3, [Sampling(), Sampling(temperature=1e9), Sampling(repetition_penalty=50.0)])
             for _ in range(400)]  # fmt: skip
    assert {row[0] for row in drawn} == {3} and {row[2] for row in drawn} == {2}
    assert {row[1] for row in drawn} == {0, 1, 2, 3}


def brute_top_p(probs, p):
    kept, total = set(), 0.0
    for i in sorted(range(len(probs)), key=lambda i: -probs[i]):
        kept.add(i)
        total += probs[i]
        if total >= p:
            break
    return kept


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-400, 400), min_size=2, max_size=12, unique=True), st.integers(1, 15),
       st.floats(0.01, 0.999))  # fmt: skip
def test_filters_equal_brute_force(hundredths, k, p):
    logits = torch.tensor([hundredths], dtype=torch.float64) / 100
    probs = logits.softmax(dim=-1)[0].tolist()

    def kept(filtered):
        return set(torch.isfinite(filtered[0]).nonzero()[:, 0].tolist())

    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    assert kept(keep_top_k(logits, k)) == set(order[:k])
    assert kept(keep_min_p(logits, p)) == {i for i in order if probs[i] >= p * max(probs)}
    assert kept(keep_top_p(logits, p)) == brute_top_p(probs, p)


def test_probabilities_follow_the_definition():
    logits, history = torch.tensor([[2.0, -1.0, 0.5, 0.0]]), [[0, 1, 1]]
    penalised = torch.tensor([2.0 / 1.5, -1.0 * 1.5, 0.5, 0.0]) / 0.7
    expected = penalised.softmax(dim=-1)
    assert_close(next_token_probs(logits, history, Sampling(0.7, repetition_penalty=1.5))[0], expected)
    top2 = torch.where(expected >= expected.sort(descending=True).values[1], expected, 0.0)
    filtered = next_token_probs(logits, history, Sampling(0.7, top_k=2, repetition_penalty=1.5))[0]
    assert_close(filtered, top2 / top2.sum())


def test_draws_have_the_right_frequencies():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    settings = Sampling(temperature=1.0, generator=torch.Generator().manual_seed(0))
    n = 30_000
    drawn = torch.tensor(sample(logits.repeat(n, 1), [[0]] * n, [settings] * n)).bincount(minlength=3)
    expected = n * logits.softmax(dim=-1)[0]
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # 99.9 % point for 2 degrees of freedom; the seed is fixed


def test_eos_ends_a_row_and_then_the_batch(model):
    free = generate(model, PROMPTS, 30)
    eos = free[0, 8].item()  # the third new token of row 0
    ended = generate(model, PROMPTS, 30, eos_id=eos)
    for full, row in zip(free[:, 6:].tolist(), ended[:, 6:].tolist(), strict=True):
        if eos in full:
            end = full.index(eos) + 1
            assert row[:end] == full[:end][: len(row)] and set(row[end:]) <= {eos}
        else:
            assert row == full
    assert generate(model, PROMPTS[0], 30, eos_id=eos).shape[1] == 6  # three prompt tokens, three new ones


def test_stream_yields_what_generate_returns(model):
    columns = list(stream(model, PROMPTS, 12))
    assert torch.equal(torch.stack(columns, dim=1), generate(model, PROMPTS, 12)[:, 6:])
    first = next(stream(model, PROMPTS, 10**9))  # asking for a lot costs nothing until it is taken
    assert torch.equal(first, columns[0])


def test_dropout_is_off_and_the_mode_comes_back():
    model = lively(GPTConfig(101, 16, 32, 4, 2, drop_rate=0.5)).train()
    assert torch.equal(generate(model, [1, 2], 12), generate(model, [1, 2], 12))
    assert model.training


def test_prompt_forms_agree(model):
    expected = generate(model, torch.tensor([[1, 2, 3]]), 5)
    for form in ([1, 2, 3], torch.tensor([1, 2, 3]), [[1, 2, 3]], [torch.tensor([1, 2, 3])]):
        assert torch.equal(generate(model, form, 5), expected)


@pytest.mark.parametrize(("settings", "named"), [
    ({"top_k": 0}, "top_k is 0"), ({"top_p": 0.0}, "top_p is 0.0"), ({"top_p": 1.1}, "top_p is 1.1"),
    ({"temperature": -0.1}, "temperature is -0.1"), ({"temperature": float("nan")}, "temperature is nan"),
    ({"min_p": 2}, "min_p is 2"), ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"temperature": 1e-38}, "temperature is 1e-38; it must be 0"), ({"temperature": 9e-7}, "temperature is 9e-07"),
    ({"temperature": float("inf")}, "temperature is inf"), ({"top_k": 2.5}, "top_k is 2.5; it must be an int"),
    ({"top_k": True}, "top_k is True"), ({"top_k": float("nan")}, "top_k is nan"), ({"top_k": "5"}, "top_k is '5'"),
    ({"top_p": float("nan")}, "top_p is nan"), ({"min_p": float("nan")}, "min_p is nan"),
    ({"repetition_penalty": float("nan")}, "penalty is nan"), ({"repetition_penalty": -1}, "penalty is -1"),
    ({"repetition_penalty": float("inf")}, "penalty is inf"),
])  # fmt: skip
def test_bad_settings_are_refused(model, settings, named):
    with pytest.raises(ValueError, match=named):
        generate(model, [1], 2, **settings)


@pytest.mark.parametrize(("prompt", "named"), [([], "no prompt"), ([[]], "empty"), ([[1], []], "prompt 1 is empty"),
                                               ([101], "101"), ([[-1]], "-1"), ("text", "token 't'"),
                                               (["text"], "token 'text'"), ([[1, 2.5]], "token 2.5"),
                                               (torch.tensor([1.0]), "token 1.0")])  # fmt: skip
def test_bad_prompts_are_refused(model, prompt, named):
    with pytest.raises(ValueError, match=named):
        generate(model, prompt, 2)


def test_negative_length_is_refused_and_large_top_k_means_all(model):
    for wrong in (-1, 2.5, 2.0, True, "2", None, float("nan")):
        with pytest.raises(ValueError, match=re.escape(f"max_new_tokens is {wrong!r}; it must be an int, at least 0")):
            generate(model, [1], wrong)
    one, other = (generate(model, [1], 9, temperature=1.0, top_k=k, generator=torch.Generator().manual_seed(5))
                  for k in (None, 10**6))  # fmt: skip
    assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
def test_the_lowest_temperatures_are_greedy(model, temperature):
    assert torch.equal(generate(model, PROMPTS, 20, temperature=temperature), generate(model, PROMPTS, 20))


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.2}, {"use_cache": False}])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_with_damaged_weights_is_refused(settings, number):
    broken = lively(CONFIG, seed=1).train()
    with torch.no_grad():
        broken.final_norm.bias[3] = number
    with pytest.raises(FloatingPointError, match="not finite; the model's weights are damaged"):
        generate(broken, PROMPTS, 3, **settings)
    assert broken.training


def test_logits_may_forbid_tokens_but_not_all():
    logits = torch.tensor([[0.0, float("-inf"), 1.0], [float("-inf")] * 3])
    assert sample(logits[:1], [[]], [Sampling()]) == [2]
    with pytest.raises(FloatingPointError):
        sample(logits, [[], []], [Sampling(temperature=1.0)] * 2)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5}, {"temperature": 1.0, "top_k": 3}, {"use_cache": False},
                                      {"temperature": 1.0, "repetition_penalty": 1.5}])  # fmt: skip
def test_padding_of_the_vocabulary_is_never_drawn(model, settings):
    """A model with more ids than the tokenizer says what the same model without them says."""

    def run(vocab_size, n_vocab):
        padded = lively(GPTConfig(128, 16, 32, 4, 2, tie_weights=False), seed=3)
        with torch.no_grad():
            padded.head.weight[101:] *= 50  # the model likes them best
        padded.head.weight = torch.nn.Parameter(padded.head.weight[:vocab_size])
        generator = torch.Generator().manual_seed(0)
        return generate(padded, PROMPTS, 30, n_vocab=n_vocab, generator=generator, **settings)

    assert run(128, None).max() > 100  # so it can happen
    assert torch.equal(run(128, 101), run(101, None)) and run(128, 101).max() < 101
    assert torch.equal(run(128, 500), run(128, None))
