"""The choice of the next token: settings of a row, filters that cut the unlikely tail, and one draw for each row.

Shapes: B rows, V vocabulary.
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
        if self.top_p is not None and not 1e-6 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be at least 0.000001 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be between 0 and 1")
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be from 0.000001 to 1000000")


def penalize_repetition(logits, history, penalty):
    """Make the tokens of each row's `history` (a list of lists of ids) less likely: logits [B, V] -> [B, V].

    A positive logit is divided by the penalty, a negative one multiplied.
    """
    if penalty == 1:
        return logits
    logits = logits.clone()
    for row, seen in zip(logits, history, strict=True):
        seen = torch.tensor(sorted(set(seen)), dtype=torch.long, device=logits.device)
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
    logits = penalize_repetition(logits, history, settings.repetition_penalty).float() / settings.temperature
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
        part, seen = logits[rows], [history[i] for i in rows]
        if choice.temperature == 0:
            drawn = penalize_repetition(part, seen, choice.repetition_penalty).argmax(dim=-1)
        else:
            drawn = torch.multinomial(next_token_probs(part, seen, choice), 1, generator=choice.generator)[:, 0]
        for i, token in zip(rows, drawn.tolist(), strict=True):
            tokens[i] = token
    return tokens
