"""Text from a GPT: sampling filters, the key-value cache, `generate` and `stream`.

Both stand on one step: `next_logits` brings the cache up to date with each row's tokens and gives the logits of the
next one, `sample` draws it with that row's settings. Rows may differ in length, and may come and go.

Shapes: B rows, T tokens, V vocabulary, H heads, K width of one head, C context_length.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How one row picks its next token. `temperature=0` is greedy: the most likely token, the filters play no part.

    top_k: only the k most likely tokens (Fan et al. 2018); more than the vocabulary means all of it.
    top_p: the smallest set of tokens that together reach p (nucleus sampling, Holtzman et al. 2020).
    min_p: tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024).
    repetition_penalty: above 1, makes the tokens seen so far less likely (Keskar et al. 2019, section 4.1).
    Raises ValueError for a setting out of its bounds.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    generator: torch.Generator | None = None

    def __post_init__(self):
        if self.temperature != 0 and not 1e-6 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or at least 0.000001")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k!r}; it must be an int, at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be between 0 and 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0")


def penalize_repetition(logits, history, penalty):
    """Make the tokens of each row's `history` (a list of lists of ids) less likely: logits [B, V] -> [B, V].

    A positive logit is divided by the penalty, a negative one multiplied.
    """
    logits = logits.clone()
    for row, seen in zip(logits, history, strict=True):
        seen = torch.tensor(sorted(set(seen)), device=logits.device)
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return logits


def keep_top_k(logits, k):
    """Set all but the k largest logits of each row to -inf; equals of the k-th stay too: [B, V] -> [B, V]."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]  # [B, 1]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits, p):
    """Keep the most likely tokens up to and including the one that brings their sum to p: [B, V] -> [B, V]."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # what the more likely tokens already hold
    return logits.masked_fill((before >= p).scatter(-1, order, before >= p), float("-inf"))


def keep_min_p(logits, p):
    """Keep the tokens whose probability is at least p times the largest of the row: [B, V] -> [B, V]."""
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < p * probs.amax(dim=-1, keepdim=True), float("-inf"))


def next_token_probs(logits, history, settings):
    """The distribution that `settings` draw from, for temperature > 0: logits [B, V] -> probabilities [B, V]."""
    if settings.repetition_penalty != 1:
        logits = penalize_repetition(logits, history, settings.repetition_penalty)
    logits = logits.float() / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p is not None:
        logits = keep_min_p(logits, settings.min_p)
    return logits.softmax(dim=-1)


def sample(logits, history, settings):
    """One token id for each row: logits [B, V], `settings` a list of B `Sampling` -> list of B ints.

    Raises FloatingPointError where a row of logits holds NaN or has no largest number.
    """
    if not logits.amax(dim=-1).isfinite().all():
        raise FloatingPointError("the logits of the next token are not finite; the model's weights are damaged")
    tokens = [None] * len(settings)
    for choice in dict.fromkeys(settings):  # rows that share their settings are handled together
        rows = [i for i, s in enumerate(settings) if s == choice]
        part = logits if len(rows) == len(settings) else logits[rows]
        seen = [history[i] for i in rows]
        if choice.temperature == 0:
            if choice.repetition_penalty != 1:
                part = penalize_repetition(part, seen, choice.repetition_penalty)
            drawn = part.argmax(dim=-1)
        else:
            probs = next_token_probs(part, seen, choice)
            drawn = torch.multinomial(probs, 1, generator=choice.generator)[:, 0]
        for i, token in zip(rows, drawn.tolist(), strict=True):
            tokens[i] = token
    return tokens


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

    `lengths[row]` is how many tokens of that row are stored, `starts[row]` how many older ones were forgotten.
    The memory is taken once: 2 * n_layers * n_rows * C * emb_dim numbers (C at most `max_tokens`, if given).
    """

    def __init__(self, model, n_rows, max_tokens=None):
        config, weight = model.config, model.token_embedding.weight
        self.context_length = config.context_length
        size = min(self.context_length, max_tokens or self.context_length)
        shape = (2, config.n_layers, n_rows, config.n_heads, size, config.emb_dim // config.n_heads)
        self.keys, self.values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.lengths, self.starts = [0] * n_rows, [0] * n_rows

    def free(self, row):
        """Forget a row's text, so that another one can take its place."""
        self.lengths[row] = self.starts[row] = 0

    def unread(self, row, tokens):
        """Those of a row's `tokens` that are not stored yet. When its context is full, the row starts anew."""
        start = window_start(len(tokens), self.context_length)
        if start != self.starts[row]:
            self.lengths[row], self.starts[row] = 0, start
        return tokens[start + self.lengths[row] :]


class CachePass:
    """One forward pass through a cache, in which each of `rows` reads up to `n_new` more tokens.

    The model asks for `positions` [T] (or [B, T] where the rows differ) and for one storing function per `layer`.
    """

    def __init__(self, cache, rows, n_new):
        device, lengths = cache.keys.device, [cache.lengths[row] for row in rows]
        self.cache, self.end = cache, max(lengths) + n_new
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        self.rows = slice(rows[0], rows[0] + len(rows)) if neighbours else torch.tensor(rows, device=device)
        if len(set(lengths)) == 1:  # all rows write to the same place
            self.write_rows, self.write = self.rows, slice(lengths[0], self.end)
            self.positions = torch.arange(lengths[0], self.end, device=device)  # [T]
            alone = n_new == 1 or lengths[0] == 0  # one token sees all; a first reading is plainly causal
            self.mask = None if alone else causal_mask(self.positions, self.end)  # [T, S]
        else:
            new = torch.arange(n_new, device=device)
            self.positions = torch.tensor(lengths, device=device)[:, None] + new  # [B, T]
            self.write_rows, self.write = torch.tensor(rows, device=device)[:, None], self.positions
            self.mask = causal_mask(self.positions, self.end)[:, None]  # [B, 1, T, S]

    def layer(self, i):
        """The function that stores layer i's new keys and values [B, H, T, K] and returns all so far, with the mask."""
        keys, values = self.cache.keys[i].transpose(1, 2), self.cache.values[i].transpose(1, 2)  # [B, C, H, K]

        def extend(k, v):
            keys[self.write_rows, self.write] = k.transpose(1, 2)
            values[self.write_rows, self.write] = v.transpose(1, 2)
            k, v = keys[self.rows, : self.end], values[self.rows, : self.end]
            return k.transpose(1, 2), v.transpose(1, 2), self.mask  # [B, H, S, K] twice

        return extend


@torch.no_grad()
def next_logits(model, histories, cache=None, rows=None):
    """Logits of the token after each of `histories` (a list of B lists of ids): [B, V].

    With a cache, history i belongs to its row `rows[i]`, and the model reads only what is not stored yet: texts that
    begin are read together, those that grew by one token too, others one by one. Without, it reads all again.
    """
    rows = list(range(len(histories))) if rows is None else rows
    context_length = model.config.context_length
    if cache is None:
        unread = [tokens[window_start(len(tokens), context_length) :] for tokens in histories]
        groups = {"all": list(range(len(histories)))}
    else:
        unread = [cache.unread(row, tokens) for row, tokens in zip(rows, histories, strict=True)]
        groups = {}
        for i, row in enumerate(rows):
            kind = "first" if cache.lengths[row] == 0 else "one" if len(unread[i]) == 1 else row
            groups.setdefault(kind, []).append(i)
    device = model.token_embedding.weight.device
    logits = [None] * len(rows)
    for members in groups.values():
        longest = max(len(unread[i]) for i in members)
        padded = [unread[i] + [0] * (longest - len(unread[i])) for i in members]
        group_rows = [rows[i] for i in members]
        view = None if cache is None else CachePass(cache, group_rows, longest)
        hidden = model.hidden(torch.tensor(padded, device=device), view)  # [b, T, D]
        last = torch.tensor([len(unread[i]) - 1 for i in members], device=device)
        hidden = hidden[torch.arange(len(members), device=device), last]  # [b, D]
        group_logits = (model.head.weight @ hidden.T).T  # [b, V]: on a CPU, for few rows, faster than head(hidden)
        for i, row, row_logits in zip(members, group_rows, group_logits, strict=True):
            logits[i] = row_logits
            if cache is not None:
                cache.lengths[row] += len(unread[i])
    return group_logits if len(groups) == 1 else torch.stack(logits)


def as_histories(tokens, vocab_size):
    """Prompts as a list of lists of ids, from a tensor [B, T] or [T], a list of ids, or lists of unequal length.

    Raises ValueError for an empty prompt and for an id outside the vocabulary, such as a letter of a text.
    """
    histories = tokens.tolist() if isinstance(tokens, torch.Tensor) else list(tokens)
    if histories and not isinstance(histories[0], (list, torch.Tensor)):
        histories = [histories]
    histories = [row.tolist() if isinstance(row, torch.Tensor) else list(row) for row in histories]
    for i, row in enumerate(histories):
        if not row:
            raise ValueError(f"prompt {i} is empty: give at least one token, for example <|endoftext|>")
        wrong = [token for token in row if isinstance(token, (str, float)) or not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"prompt {i} holds token {wrong[0]!r}; the model's vocabulary has {vocab_size} tokens")
    if not histories:
        raise ValueError("there is no prompt: give at least one token, for example <|endoftext|>")
    return histories


@torch.no_grad()
def stream(
    model, tokens, max_new_tokens, *, temperature=0.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0,
    eos_id=None, n_vocab=None, use_cache=True, generator=None,
):  # fmt: skip
    """Yield the next token of every prompt as soon as it is known, as a tensor [B].

    The settings are those of `Sampling`. Ids from `n_vocab` on are never drawn: where the model's vocabulary was filled
    up to a round number, that is the size of the tokenizer's.
    A row that has produced `eos_id` goes on yielding it; the stream ends when all rows have, or after
    `max_new_tokens`. Past the context length the oldest tokens are forgotten (see `window_start`).
    """
    histories = as_histories(tokens, model.config.vocab_size)
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it must be an int, at least 0")
    settings = [Sampling(temperature, top_k, top_p, min_p, repetition_penalty, generator)] * len(histories)
    longest = max(map(len, histories)) + max_new_tokens
    cache = KVCache(model, len(histories), longest) if use_cache else None
    done, was_training = [False] * len(histories), model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            new = sample(next_logits(model, histories, cache)[:, :n_vocab], histories, settings)
            for i, token in enumerate(new):
                new[i] = eos_id if done[i] else token
                histories[i].append(new[i])
                done[i] = done[i] or token == eos_id
            yield torch.tensor(new, device=model.token_embedding.weight.device)
            if all(done):
                return
    finally:
        model.train(was_training)


def generate(
    model, tokens, max_new_tokens, *, temperature=0.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0,
    eos_id=None, n_vocab=None, use_cache=True, generator=None,
):  # fmt: skip
    """Prompts and their continuations as one tensor [B, T + new], on the model's device.

    `tokens` is [B, T], [T], or a list of prompts of unequal length: then the shorter ones are padded on the left with
    `eos_id` (0 if there is none), so that all continuations start in column T. The settings are those of `stream`;
    `generator` makes sampling reproducible. Ends early when every row has produced `eos_id`.
    """
    prompts = as_histories(tokens, model.config.vocab_size)
    longest = max(map(len, prompts))
    pad_id = 0 if eos_id is None else eos_id
    padded = [[pad_id] * (longest - len(row)) + row for row in prompts]
    columns = stream(
        model, prompts, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, eos_id=eos_id, n_vocab=n_vocab, use_cache=use_cache,
        generator=generator,
    )  # fmt: skip
    start = torch.tensor(padded, device=model.token_embedding.weight.device)
    return torch.cat([start, *(column[:, None] for column in columns)], dim=1)
