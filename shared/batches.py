"""From token ids to batches: windows of one long text, rows of unequal length, and the parts of a data set."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class TokenDataset(Dataset):
    """Windows of `context_length` tokens and the same windows one token later: what to read and what to predict.

    Window i starts at token i * stride; item i is (inputs, targets), each [T] int64. The last tokens that do not fill
    a window are left out. Raises ValueError for what are no ids, and when there are too few for one window.
    """

    def __init__(self, token_ids, context_length, stride=None):
        ids = torch.as_tensor(token_ids)
        if ids.dim() != 1 or len(ids) and not torch.can_cast(ids.dtype, torch.long):
            raise ValueError(f"token_ids is {list(ids.shape)} of {ids.dtype}; it must be one row of whole numbers")
        self.ids = ids.long()
        self.context_length = context_length
        self.stride = context_length if stride is None else stride
        if not all(type(n) is int and n >= 1 for n in (context_length, self.stride)):
            raise ValueError(f"context_length ({context_length}) and stride ({self.stride}) must be ints, at least 1")
        if len(self.ids) <= context_length:
            raise ValueError(
                f"the text has {len(self.ids)} tokens; one window of context_length {context_length} and its targets "
                f"need {context_length + 1}"
            )

    def __len__(self):
        return (len(self.ids) - 1 - self.context_length) // self.stride + 1

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} does not exist: there are {len(self)}")
        start = i * self.stride
        end = start + self.context_length
        return self.ids[start:end], self.ids[start + 1 : end + 1]


def create_dataloader(token_ids, context_length, batch_size, stride=None, shuffle=True, drop_last=True, seed=0):
    """Batches of windows: (inputs, targets), each [B, T] int64.

    `seed` fixes the order of the windows. Raises ValueError when the text is too short for one full batch.
    """
    dataset = TokenDataset(token_ids, context_length, stride)
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"the text gives {len(dataset)} windows of {context_length} tokens, fewer than batch_size {batch_size}: "
            "take a smaller batch, a shorter context or drop_last=False"
        )
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, generator=generator)


def pad(rows, pad_id=0):
    """Rows of unequal length as one tensor, filled up on the right: -> tokens [B, T], lengths [B].

    What stands after a row's end does not matter: a causal model looks at no later token.
    """
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id), lengths


class LengthBuckets:
    """Batches of numbers 0 ... N - 1 in which neighbours in length stand together, so that little is padded.

    Shuffled anew by `generator` at each pass; sorted by length within groups of 50 batches; batches shuffled again.
    """

    def __init__(self, lengths, batch_size, generator):
        self.lengths, self.batch_size, self.generator = list(lengths), batch_size, generator

    def __len__(self):
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self):
        order = torch.randperm(len(self.lengths), generator=self.generator).tolist()
        group, batches = 50 * self.batch_size, []
        for start in range(0, len(order), group):
            rows = sorted(order[start : start + group], key=self.lengths.__getitem__)
            batches += [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[i]


def pack(data, max_tokens):
    """The items of `data`, tuples of tensors [n], joined into rows of at most `max_tokens`.

    Longest first, each into the fullest row that has room: nearly nothing is padded, but an item also sees those before
    it in its row. Raises ValueError for an item that is longer.
    """
    rows, by_room = [], [[] for _ in range(max_tokens + 1)]  # by_room[n]: the rows that have room for n more tokens
    for item in sorted(data, key=lambda item: -len(item[0])):
        n = len(item[0])
        if n > max_tokens:
            raise ValueError(f"an item has {n} tokens; a row holds at most {max_tokens}")
        room = next((room for room in range(n, max_tokens + 1) if by_room[room]), None)
        if room is None:
            room = max_tokens
            rows.append([])
            by_room[room].append(rows[-1])
        row = by_room[room].pop()
        row.append(item)
        by_room[room - n].append(row)
    return [tuple(map(torch.cat, zip(*row, strict=True))) for row in rows]


def random_split(items, shares=(0.85, 0.05, 0.10), seed=0):
    """Shuffled parts of `items` of these shares: training, validation, test. Deduplicate first.

    Raises ValueError where a part would be empty.
    """
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    ends = [round(len(items) * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    parts = [[items[i] for i in order[start:end]] for start, end in zip([0, *ends], ends, strict=False)]
    if not all(parts):
        raise ValueError(f"{len(items)} items are too few for parts of {shares}")
    return parts


def as_list(texts):
    """`texts` as a list. Raises TypeError for a single text or entry, which would be read letter by letter."""
    if isinstance(texts, (str, bytes, dict)):
        raise TypeError(f"a list is needed here, not one {type(texts).__name__}: {str(texts)[:40]!r}")
    return list(texts)
