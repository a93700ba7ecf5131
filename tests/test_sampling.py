"""Sampling: filters against brute force, probabilities against their definition, draws against their frequencies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from shared.sampling import Sampling, keep_min_p, keep_top_k, keep_top_p, next_token_probs, penalize_repetition, sample


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


def test_a_penalty_without_history_changes_nothing():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    assert torch.equal(penalize_repetition(logits, [[]], 1.5), logits)
    assert sample(logits, [[]], [Sampling(repetition_penalty=1.5)]) == [0]


def test_draws_have_the_right_frequencies():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    settings = Sampling(temperature=1.0, generator=torch.Generator().manual_seed(0))
    n = 30_000
    drawn = torch.tensor(sample(logits.repeat(n, 1), [[0]] * n, [settings] * n)).bincount(minlength=3)
    expected = n * logits.softmax(dim=-1)[0]
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # 99.9 % point for 2 degrees of freedom; the seed is fixed


def test_logits_may_forbid_tokens_but_not_all():
    logits = torch.tensor([[0.0, float("-inf"), 1.0], [float("-inf")] * 3])
    assert sample(logits[:1], [[]], [Sampling()]) == [2]
    with pytest.raises(FloatingPointError):
        sample(logits, [[], []], [Sampling(temperature=1.0)] * 2)


@pytest.mark.parametrize(("settings", "named"), [
    ({"top_k": 0}, "top_k is 0"), ({"top_p": 0.0}, "top_p is 0.0"), ({"top_p": 1.1}, "top_p is 1.1"),
    ({"temperature": -0.1}, "temperature is -0.1"), ({"temperature": float("nan")}, "temperature is nan"),
    ({"min_p": 2}, "min_p is 2"), ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"temperature": 1e-38}, "temperature is 1e-38; it must be 0"), ({"temperature": 9e-7}, "temperature is 9e-07"),
    ({"temperature": float("inf")}, "temperature is inf"), ({"top_k": 2.5}, "top_k is 2.5; it must be an int"),
    ({"top_k": True}, "top_k is True"), ({"top_k": float("nan")}, "top_k is nan"), ({"top_k": "5"}, "top_k is '5'"),
    ({"top_p": float("nan")}, "top_p is nan"), ({"min_p": float("nan")}, "min_p is nan"),
    ({"repetition_penalty": float("nan")}, "penalty is nan"), ({"repetition_penalty": -1}, "penalty is -1"),
    ({"repetition_penalty": float("inf")}, "penalty is inf"), ({"top_p": 1e-320}, "top_p is 1e-320"),
    ({"repetition_penalty": 1e-300}, "penalty is 1e-300"), ({"repetition_penalty": 1e300}, "penalty is 1e"),
])  # fmt: skip
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**settings)
