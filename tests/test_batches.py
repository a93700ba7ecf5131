"""Batches: windows against plain slices, rows of unequal length, packing against brute force, parts of a data set."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.batches import LengthBuckets, TokenDataset, as_list, create_dataloader, pack, pad, random_split


@pytest.mark.parametrize(("n", "length", "stride"), [(10, 4, 4), (10, 4, 1), (9, 4, 4), (5, 4, 1), (23, 5, 7)])
def test_windows_equal_plain_slices(n, length, stride):
    ids = list(range(100, 100 + n))
    windows = [ids[i : i + length + 1] for i in range(0, n, stride) if len(ids[i : i + length + 1]) == length + 1]
    dataset = TokenDataset(ids, length, stride)
    assert len(dataset) == len(windows)
    for (inputs, targets), window in zip((dataset[i] for i in range(len(dataset))), windows, strict=True):
        assert inputs.tolist() == window[:-1] and targets.tolist() == window[1:]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_loader_order_is_fixed_by_its_seed():
    def order(seed):
        return torch.cat([x[:, 0] for x, _ in create_dataloader(range(200), 4, 3, seed=seed)]).tolist()

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))
    assert len(order(1)) == 48  # 49 windows, the last incomplete batch dropped


@pytest.mark.parametrize(("ids", "length"), [([], 4), ([1], 4), ([1, 2, 3, 4], 4), ([1, 2], 0)])
def test_too_short_texts_are_refused(ids, length):
    with pytest.raises(ValueError, match=str(length)):
        TokenDataset(ids, length)


@pytest.mark.parametrize("ids", [[1.0] * 9, [float("nan")] * 9, torch.rand(9), np.ones(9, np.float16), [1 + 2j] * 9,
                                 [[1, 2, 3]] * 9, torch.ones(9, 9).long(), 7])  # fmt: skip
def test_what_are_no_ids_is_refused(ids):
    with pytest.raises(ValueError, match=r"token_ids is \[.*\] of torch.*; it must be one row of whole numbers"):
        create_dataloader(ids, 2, 1)


@pytest.mark.parametrize("ids", [range(9), tuple(range(9)), np.arange(9, dtype=np.uint16), torch.arange(9).int()])
def test_ids_come_in_any_whole_numbers(ids):
    inputs, targets = TokenDataset(ids, 4)[1]
    assert inputs.tolist() == [4, 5, 6, 7] and targets.dtype == torch.long


@pytest.mark.parametrize(("length", "stride"), [(1.5, 1), (float("nan"), 1), (4, 0), (4, -1), (4, 2.0), ("4", 1)])
def test_lengths_that_are_no_whole_numbers_are_refused(length, stride):
    with pytest.raises(ValueError, match="must be ints, at least 1"):
        TokenDataset(range(20), length, stride)


def test_too_large_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size 8"):
        create_dataloader(range(20), 4, 8)


def test_padding_stands_on_the_right():
    tokens, lengths = pad([torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([2, 3])], pad_id=9)
    assert tokens.tolist() == [[5, 6, 7], [8, 9, 9], [2, 3, 9]] and lengths.tolist() == [3, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 9))
def test_every_number_comes_once_in_a_pass(lengths, batch_size):
    buckets = LengthBuckets(lengths, batch_size, torch.Generator().manual_seed(0))
    for _ in range(2):
        batches = list(buckets)
        assert len(batches) == len(buckets) and max(map(len, batches)) <= batch_size
        assert sorted(sum(batches, [])) == list(range(len(lengths)))


def test_buckets_pad_little_and_shuffle():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (4000,), generator=generator).tolist()

    def padding(batches):
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / sum(lengths) - 1

    buckets = LengthBuckets(lengths, 16, generator)
    first, second = list(buckets), list(buckets)
    order = torch.randperm(4000, generator=generator).tolist()
    plain = padding([order[i : i + 16] for i in range(0, 4000, 16)])
    assert padding(first) < 0.1 * plain and plain > 0.5
    assert first != second and {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert longest != sorted(longest)  # short and long batches in turn
    generator.manual_seed(7)
    again = list(buckets)
    assert again == list(LengthBuckets(lengths, 16, torch.Generator().manual_seed(7)))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_packing_takes_the_fullest_row_that_has_room(lengths):
    data = [(torch.full((n,), i), torch.ones(n, dtype=torch.bool)) for i, n in enumerate(lengths)]
    rows = pack(data, 20)
    room = []
    for n in sorted(lengths, reverse=True):  # the same by brute force
        fits = [i for i in range(len(room)) if room[i] >= n]
        if not fits:
            room.append(20)
            fits = [len(room) - 1]
        room[min(fits, key=room.__getitem__)] -= n
    assert sorted(len(ids) for ids, _ in rows) == sorted(20 - free for free in room)
    assert Counter(torch.cat([ids for ids, _ in rows]).tolist()) == Counter(dict(enumerate(lengths)))


def test_packing_refuses_what_is_longer_than_a_row():
    rows = [(torch.arange(n), torch.ones(n)) for n in (4, 61, 60)]
    with pytest.raises(ValueError, match="an item has 61 tokens; a row holds at most 60"):
        pack(rows, 60)
    assert len(pack(rows[::2], 60)) == 2


def test_split_is_a_partition_by_shares():
    items = [f"item {i}" for i in range(97)]
    parts = random_split(items)
    assert [len(part) for part in parts] == [82, 5, 10]
    together = sum(parts, [])
    assert sorted(together) == sorted(items) and together != items
    assert random_split(items) == parts != random_split(items, seed=1)
    assert [len(part) for part in random_split(items[:10], shares=(8, 1, 1))] == [8, 1, 1]


@pytest.mark.parametrize("n", [0, 2, 5])
def test_too_few_items_to_split(n):
    with pytest.raises(ValueError, match=f"{n} items are too few for parts of"):
        random_split(["a"] * n)


@pytest.mark.parametrize("text", ["a text", b"bytes", {"instruction": "Name a colour."}])
def test_a_single_text_is_no_list(text):
    with pytest.raises(TypeError, match=f"a list is needed here, not one {type(text).__name__}"):
        as_list(text)
    assert as_list(iter([text])) == [text]
