"""Text from a model: the key-value cache, prefill and decode step, `stream` and `generate`.

`prefill` reads the prompts of new rows, `decode_step` one more token of each row, and both give the logits of the token
that follows; a row that is freed takes a new text. Of a model they need `config`, `token_embedding`, `head`, and
`hidden(tokens, cache)`, which takes its positions from `cache.positions` and stores what layer i makes by
`cache.layer(i)` (see `CachePass`).

Shapes: B rows, T tokens, V vocabulary, H heads (of keys and values), K width of one head, C room of a row.
"""

import torch

from shared.sampling import Sampling, sample


def window_start(n_tokens, context_length):
    """How many of a row's oldest tokens the model no longer sees.

    GPT-2 knows its positions by number, so cached keys cannot slide. When the context is full, the oldest half of it
    is forgotten at once and the rest encoded anew: on average a row pays for two tokens instead of one.
    """
    half = max(1, context_length // 2)
    return max(0, -(-(n_tokens - context_length) // half) * half)


def causal_mask(query_positions, n_keys):
    """True where the key is not after the query: positions [..., T] -> [..., T, n_keys]."""
    return torch.arange(n_keys, device=query_positions.device) <= query_positions[..., None]


class KVCache:
    """Keys and values of the tokens that the model has read, for `n_rows` texts: per layer [B, H, C, K].

    `tokens[row]` are the ids that a row holds; a row without any is free. The memory is taken once: 2 * n_layers *
    n_rows * H * C * K numbers. C is the context length, or `max_tokens` if that is less.
    """

    def __init__(self, model, n_rows, max_tokens=None):
        config, weight = model.config, model.token_embedding.weight
        self.size = min(config.context_length, max_tokens or config.context_length)
        shape = (2, config.n_layers, n_rows, config.n_kv_heads, self.size, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.tokens = [[] for _ in range(n_rows)]

    def free(self, row):
        """Forget a row's text, so that another one can take its place."""
        self.tokens[row] = []


class CachePass:
    """One forward pass through a cache, in which each of `rows` reads `n_new` more tokens.

    The model asks for the `positions` of these tokens, [B, T], and for one storing function per `layer`.
    """

    def __init__(self, cache, rows, n_new):
        device, lengths = cache.keys.device, [len(cache.tokens[row]) for row in rows]
        self.cache, self.end = cache, max(lengths) + n_new
        self.positions = torch.tensor(lengths, device=device)[:, None] + torch.arange(n_new, device=device)  # [B, T]
        self.mask = causal_mask(self.positions, self.end)[:, None]  # [B, 1, T, S]
        self.rows = torch.tensor(rows, device=device)
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        self.read = slice(rows[0], rows[0] + len(rows)) if neighbours else self.rows  # a slice is read without a copy

    def layer(self, i):
        """The function that stores layer i's new keys and values [B, H, T, K] and returns all so far, with the mask."""
        keys, values = self.cache.keys[i].transpose(1, 2), self.cache.values[i].transpose(1, 2)  # [B, C, H, K]

        def extend(k, v):
            keys[self.rows[:, None], self.positions] = k.transpose(1, 2).to(keys.dtype)
            values[self.rows[:, None], self.positions] = v.transpose(1, 2).to(values.dtype)
            k, v = keys[self.read, : self.end], values[self.read, : self.end]
            return k.transpose(1, 2), v.transpose(1, 2), self.mask  # [B, H, S, K] twice

        return extend


def last_logits(model, texts, cache=None):
    """Logits of the token after each of `texts` (lists of ids, padded on the right for the model): [B, V]."""
    device, longest = model.token_embedding.weight.device, max(map(len, texts))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts], device=device)  # [B, T]
    last = torch.tensor([len(ids) - 1 for ids in texts], device=device)
    hidden = model.hidden(padded, cache)[torch.arange(len(texts), device=device), last]  # [B, D]
    return model.head(hidden)


@torch.no_grad()
def next_logits(model, histories):
    """Logits of the token after each of `histories` (lists of ids), all of it read again, without a cache: [B, V]."""
    C = model.config.context_length
    return last_logits(model, [ids[window_start(len(ids), C) :] for ids in histories])


@torch.no_grad()
def prefill(model, cache, rows, prompts):
    """Read `prompts` (lists of ids) into free `rows` of the cache, together: logits of each one's next token [B, V].

    Of a prompt with more tokens than the row has room for, the end is read (see `window_start`). Raises ValueError for
    a row that is not free.
    """
    for row in rows:
        if cache.tokens[row]:
            raise ValueError(f"row {row} of the cache holds {len(cache.tokens[row])} tokens of another text: free it")
    texts = [ids[window_start(len(ids), cache.size) :] for ids in prompts]
    logits = last_logits(model, texts, CachePass(cache, rows, max(map(len, texts))))
    for row, ids in zip(rows, texts, strict=True):
        cache.tokens[row] = ids
    return logits


@torch.no_grad()
def decode_step(model, cache, rows, tokens):
    """Each of `rows` reads one more token, `tokens` are their ids: logits of each row's next token [B, V].

    The rows may differ in length. A row that is full first forgets its older half and reads the other half anew.
    """
    full = [row for row in rows if len(cache.tokens[row]) == cache.size]
    kept = [cache.tokens[row][window_start(cache.size + 1, cache.size) :] for row in full]
    for row in full:
        cache.free(row)
    if any(kept):
        prefill(model, cache, full, kept)
    logits = last_logits(model, [[token] for token in tokens], CachePass(cache, rows, 1))
    for row, token in zip(rows, tokens, strict=True):
        cache.tokens[row].append(token)
    return logits


def as_histories(tokens, vocab_size):
    """Prompts as a list of lists of ids, from a tensor [B, T] or [T], a list of ids, or lists of unequal length.

    Raises ValueError for an empty prompt and for an id outside the vocabulary, such as a letter of a text.
    """

    def plain(ids):  # as Python's own lists and numbers
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        return [plain(i) for i in ids] if isinstance(ids, (list, tuple, range)) else ids

    histories = plain(tokens)
    histories = histories if isinstance(histories, list) else [histories]
    if not all(isinstance(row, list) for row in histories):
        histories = [histories]
    for i, row in enumerate(histories or [[]]):
        if not row:
            raise ValueError(f"prompt {i} is empty: give at least one token, for example <|endoftext|>")
        for token in row:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise ValueError(f"prompt {i} holds token {token!r:.50}; the model's tokens are 0 to {vocab_size - 1}")
    return histories


@torch.no_grad()
def stream(model, tokens, max_new_tokens, *, eos_id=None, n_vocab=None, use_cache=True, **settings):
    """Yield the next token of every prompt as soon as it is known, as a tensor [B].

    `settings` are those of `Sampling`, for all rows. Ids from `n_vocab` on are never drawn: where the model's
    vocabulary was filled up to a round number, that is the size of the tokenizer's.
    A row that has produced `eos_id` goes on yielding it; the stream ends when all rows have, or after
    `max_new_tokens`. Past the context length the oldest tokens are forgotten (see `window_start`).
    Raises ValueError for a bad prompt, setting or number of tokens.
    """
    histories = as_histories(tokens, model.config.vocab_size)
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it must be an int, at least 0")
    if n_vocab is not None and (type(n_vocab) is not int or n_vocab < 1):
        raise ValueError(f"n_vocab is {n_vocab!r}; it must be an int, at least 1")
    if eos_id is not None and eos_id not in range(model.config.vocab_size):
        raise ValueError(f"eos_id is {eos_id!r}; the model's tokens are 0 to {model.config.vocab_size - 1}")
    rows, choices, new = list(range(len(histories))), [Sampling(**settings)] * len(histories), None
    cache = KVCache(model, len(rows), max(map(len, histories)) + max_new_tokens) if use_cache else None
    done, was_training = [False] * len(rows), model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            if not use_cache:
                logits = next_logits(model, histories)
            elif new is None:
                logits = prefill(model, cache, rows, histories)
            else:
                logits = decode_step(model, cache, rows, new)
            new = sample(logits[:, :n_vocab], histories, choices)
            for i, token in enumerate(new):
                new[i] = eos_id if done[i] else token
                histories[i].append(new[i])
                done[i] = done[i] or token == eos_id
            yield torch.tensor(new, device=model.token_embedding.weight.device)
            if all(done):
                return
    finally:
        model.train(was_training)


def generate(model, tokens, max_new_tokens, *, eos_id=None, **settings):
    """Prompts and their continuations as one tensor [B, T + new], on the model's device.

    `tokens` is [B, T], [T], or a list of prompts of unequal length: then the shorter ones are padded on the left with
    `eos_id` (0 if there is none), so that all continuations start in column T. The settings are those of `stream`;
    `generator` makes sampling reproducible. Ends early when every row has produced `eos_id`.
    """
    prompts = as_histories(tokens, model.config.vocab_size)
    longest = max(map(len, prompts))
    pad_id = 0 if eos_id is None else eos_id
    padded = [[pad_id] * (longest - len(row)) + row for row in prompts]
    start = torch.tensor(padded, device=model.token_embedding.weight.device)
    columns = stream(model, prompts, max_new_tokens, eos_id=eos_id, **settings)
    return torch.cat([start, *(column[:, None] for column in columns)], dim=1)
