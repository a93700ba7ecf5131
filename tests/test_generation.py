"""The cache, batches and streaming: against a plain loop, against no cache, against one row at a time."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from shared.generation import (
    KVCache,
    decode_step,
    generate,
    next_logits,
    prefill,
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


@pytest.mark.parametrize("context_length", [1, 2, 7])
def test_the_smallest_contexts(context_length):
    model = lively(GPTConfig(101, context_length, 32, 4, 2), seed=4)
    assert torch.equal(generate(model, PROMPTS, 30), generate(model, PROMPTS, 30, use_cache=False))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=25), min_size=1, max_size=4), st.integers(1, 30))
def test_cached_logits_equal_uncached(prompts, n_new):
    model, histories = lively(CONFIG, seed=2), [list(p) for p in prompts]
    cache, rows = KVCache(model, len(prompts)), list(range(len(prompts)))
    logits = prefill(model, cache, rows, histories)
    for _ in range(n_new):
        assert_close(logits, next_logits(model, histories), rtol=1e-4, atol=1e-4)
        new = logits.argmax(dim=-1).tolist()
        for history, token in zip(histories, new, strict=True):
            history.append(token)
        logits = decode_step(model, cache, rows, new)


def test_rows_come_and_go(model):
    """Texts of unequal lengths join rows 0 to 3 in any order and leave them; none notices the others."""
    generator, cache, texts = torch.Generator().manual_seed(0), KVCache(model, 4), {}

    def draw(n):
        return torch.randint(0, 101, (n,), generator=generator).tolist()

    joins = {0: {0: 3, 2: 2}, 6: {3: 20, 1: 1}, 15: {0: 16}, 22: {2: 5}}  # step: {row: length of its prompt}
    leaves = {11: [0], 20: [2, 3], 35: [1, 0, 2]}
    for step in range(36):
        for row in leaves.get(step, []):
            cache.free(row)
            del texts[row]
        if texts:
            new = draw(len(texts))
            texts = {row: [*text, token] for (row, text), token in zip(texts.items(), new, strict=True)}
            logits = decode_step(model, cache, list(texts), new)
            assert_close(logits, next_logits(model, list(texts.values())), rtol=1e-4, atol=1e-4)
        if step in joins:
            prompts = {row: draw(n) for row, n in joins[step].items()}
            logits = prefill(model, cache, list(prompts), list(prompts.values()))
            assert_close(logits, next_logits(model, list(prompts.values())), rtol=1e-4, atol=1e-4)
            texts |= prompts
    assert not texts and cache.tokens == [[], [], [], []]


def test_a_row_that_is_not_free_takes_no_prompt(model):
    cache = KVCache(model, 3)
    before = prefill(model, cache, [1], [[1, 2, 3]])
    with pytest.raises(ValueError, match="row 1 of the cache holds 3 tokens of another text"):
        prefill(model, cache, [0, 1], [[4], [5]])
    assert cache.tokens == [[], [1, 2, 3], []]
    cache.free(1)
    assert_close(prefill(model, cache, [1], [[1, 2, 3]]), before)


def test_a_smaller_cache_forgets_at_its_own_size(model):
    text = [1, 2, 3]
    cache = KVCache(model, 2, max_tokens=6)
    logits = prefill(model, cache, [1], [text])
    for _ in range(20):
        window = text[window_by_hand(len(text), 6) :]
        assert_close(logits[0], model(torch.tensor([window]))[0, -1], rtol=1e-4, atol=1e-4)
        text.append(logits.argmax().item())
        logits = decode_step(model, cache, [1], text[-1:])


def test_sampling_is_the_same_with_and_without_cache(model):
    def run(use_cache, seed=3):
        settings = dict(temperature=1.2, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.3)
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPTS, 40, use_cache=use_cache, generator=generator, **settings)

    assert torch.equal(run(True), run(False))
    assert not torch.equal(run(True), run(True, seed=4))


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


def test_rows_of_unequal_length_under_autocast(model):
    """The new keys are bfloat16 there, the cache is float32."""
    with torch.autocast("cpu", torch.bfloat16):
        together = generate(model, PROMPTS, 5)
    assert together.shape == (4, 11)


def test_prompt_forms_agree(model):
    expected = generate(model, torch.tensor([[1, 2, 3]]), 5)
    arrays = np.array([1, 2, 3]), np.array([[1, 2, 3]], dtype=np.uint16), [np.int64(1), np.int64(2), torch.tensor(3)]
    for form in ([1, 2, 3], torch.tensor([1, 2, 3]), [[1, 2, 3]], [torch.tensor([1, 2, 3])], (1, 2, 3), [(1, 2, 3)],
                 range(1, 4), *arrays):  # fmt: skip
        assert torch.equal(generate(model, form, 5), expected)
    assert torch.equal(generate(model, torch.tensor(5), 5), generate(model, [5], 5))
    assert torch.equal(generate(model, [(1, 2), (3,)], 5), generate(model, [[1, 2], [3]], 5))


def test_bad_settings_are_refused(model):
    with pytest.raises(ValueError, match="top_k is 0"):
        generate(model, [1], 2, top_k=0)
    with pytest.raises(TypeError, match="topk"):
        generate(model, [1], 2, topk=3)


@pytest.mark.parametrize(("prompt", "named"), [([], "0 is empty"), ([[]], "empty"), ([[1], []], "prompt 1 is empty"),
                                               ([101], "101"), ([[-1]], "-1"), ("text", "token 'text'"),
                                               (["text"], "token 'text'"), ([[1, 2.5]], "token 2.5"),
                                               (torch.tensor([1.0]), "token 1.0"), ([True], "token True"),
                                               (torch.tensor([[1], [0]]) > 0, "token True"), (None, "token None"),
                                               ([1.0], "token 1.0"), ([float("nan")], "token nan"), ({1}, "token {1}"),
                                               ([1, [2]], r"token \[2\]"), ([[[1]]], r"token \[1\]"),
                                               ([2**70], "are 0 to 100")])  # fmt: skip
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


@pytest.mark.parametrize(("name", "wrong"), [("n_vocab", 0), ("n_vocab", -1), ("n_vocab", 50.0), ("n_vocab", "50"),
                                             ("eos_id", -1), ("eos_id", 101), ("eos_id", 2.5), ("eos_id", "2"),
                                             ("eos_id", float("nan"))])  # fmt: skip
def test_a_vocabulary_or_an_end_that_there_is_not_is_refused(model, name, wrong):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {wrong!r}; ")):
        generate(model, [1], 2, **{name: wrong})


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
