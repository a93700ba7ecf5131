"""Bigrams: against a count by hand in plain Python; probabilities that sum to 1; texts that are too short."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bigrams import Bigrams, bigram_loss


def by_hand(ids, vocab_size):
    """P(b | a) as a dictionary, with loops and the formula in the module's docstring."""
    single, pairs, n = Counter(ids), Counter(zip(ids, ids[1:], strict=False)), len(ids)
    unigram = [(max(single[b] - 0.75, 0) + 0.75 * len(single) / vocab_size) / n for b in range(vocab_size)]
    probs = {}
    for a in range(vocab_size):
        followers = {b: c for (first, b), c in pairs.items() if first == a}
        for b in range(vocab_size):
            left = max(followers.get(b, 0) - 0.75, 0) + 0.75 * len(followers) * unigram[b]
            probs[a, b] = left / sum(followers.values()) if followers else unigram[b]
    return probs


texts = st.integers(1, 7).flatmap(
    lambda v: st.tuples(st.just(v), *[st.lists(st.integers(0, v - 1), min_size=2, max_size=60)] * 2)
)


@given(texts)
@settings(max_examples=60, deadline=None)
def test_probabilities_and_loss_equal_a_count_by_hand(drawn):
    vocab_size, train, valid = drawn
    expected, model, everything = by_hand(train, vocab_size), Bigrams(train, vocab_size), torch.arange(vocab_size)
    for a in range(vocab_size):
        row = model.probs(torch.tensor(a), everything)
        assert row.tolist() == pytest.approx([expected[a, b] for b in range(vocab_size)], rel=1e-12)
        assert row.sum().item() == pytest.approx(1, rel=1e-12)
        assert (row > 0).all()
    loss = sum(-math.log(expected[pair]) for pair in zip(valid, valid[1:], strict=False)) / (len(valid) - 1)
    assert bigram_loss(train, valid, vocab_size) == pytest.approx(loss, rel=1e-9, abs=1e-12)


def test_a_large_vocabulary_and_a_long_text_need_no_table():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50_257, (1_000_000,), generator=generator)  # V * V would be 20 GB of float64
    model = Bigrams(ids, 50_257)
    assert max(t.numel() for t in vars(model).values()) <= len(ids)
    assert model.probs(ids[5], torch.arange(50_257)).sum().item() == pytest.approx(1)
    assert math.isfinite(bigram_loss(ids[:1000], ids[1000:3000], 50_257))  # nearly all of these pairs are new


def test_what_is_seen_is_likely_and_what_is_new_is_possible():
    assert bigram_loss([0, 1] * 50, [0, 1] * 50, 3) < 0.1
    assert math.log(3) < bigram_loss([0, 1] * 50, [2, 2, 2], 3) < 10


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda x: np.array(x, dtype=np.uint16)])
def test_ids_come_as_lists_arrays_or_tensors(kind):
    train, valid = [0, 1, 2, 1, 0, 1], [1, 2, 0]
    assert bigram_loss(kind(train), kind(valid), 3) == bigram_loss(train, valid, 3)


def test_text_is_drawn_from_the_rows_and_the_same_with_the_same_seed():
    model = Bigrams([0, 1, 2, 0, 2, 1, 0, 1, 1] * 20, 4)
    ids = model.generate(0, 4000, torch.Generator().manual_seed(1))
    assert len(ids) == 4000 and ids[:50] == model.generate(0, 50, torch.Generator().manual_seed(1))
    after_0 = Counter(b for a, b in zip(ids, ids[1:], strict=False) if a == 0)
    row = model.probs(torch.tensor(0), torch.arange(4))
    assert [after_0[b] / after_0.total() for b in range(4)] == pytest.approx(row.tolist(), abs=0.06)


@pytest.mark.parametrize(("train", "valid", "said"), [
    ([], [0, 1], "0 token ids"), ([0], [0, 1], "1 token ids"), ([0, 1], [], "0 token ids"),
    ([0, 1], [1], "1 token ids"),
    ([0, 1], [[0, 1], [1, 0]], "2 x 2 token ids"), ([[0, 1], [1, 0]], [0, 1], "2 x 2 token ids"),
    ([0, 3], [0, 1], "from 0 to 3"), ([0, 1], [-1, 1], "from -1 to 1"),
])
def test_empty_texts_and_ids_out_of_range_are_refused(train, valid, said):
    with pytest.raises(ValueError, match=said):
        bigram_loss(train, valid, 3)


def test_an_id_below_zero_is_not_counted_from_the_end():
    model, everything = Bigrams([3, 3, 3, 0], 4), torch.arange(4)
    for first, second in ((torch.tensor(-1), everything), (torch.tensor(0), torch.tensor(-1))):
        with pytest.raises(ValueError, match="below 0"):
            model.probs(first, second)
    with pytest.raises(ValueError, match="below 0"):
        model.generate(-1, 2)
