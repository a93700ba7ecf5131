"""What a model can do, with intervals: perplexity, preferences, agreement of raters, repetition.

Every function that reads text takes the tokenizer, a tiktoken.Encoding, as its second argument.
Shapes: N texts, n tokens.
"""

import math
from collections import Counter
from dataclasses import dataclass

import regex  # its \w knows the vowel signs of Hindi, that of re does not
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler

from shared.batches import as_list
from shared.metrics import bootstrap
from shared.runtime import evaluating
from shared.tokenizer import valid_unicode


@torch.no_grad()
def token_losses(model, ids, stride):
    """The loss in nats of every token but the first, the window moving by `stride`: ids (a list) -> [len(ids) - 1].

    Raises ValueError for a stride that would leave tokens out or never end.
    """
    device, C = model.token_embedding.weight.device, model.config.context_length
    if not 1 <= stride <= C:
        raise ValueError(f"stride is {stride}; it must be between 1 and the context length, {C}")
    ids, losses, done = torch.tensor(ids, device=device), [], 1
    while done < len(ids):
        end = min(len(ids), done + (C if done == 1 else stride))
        start = max(0, end - 1 - C)
        hidden = model.hidden(ids[None, start : end - 1])[0, done - 1 - start :]  # only what is new
        losses.append(F.cross_entropy(model.head(hidden).float(), ids[done:end], reduction="none"))
        done = end
    return torch.cat(losses).cpu()


@torch.no_grad()
def score_completions(model, pairs, batch_size=16):
    """How well a model predicts completions, for each of `pairs` (ids of a context, ids of its completion).

    Returns for each: (losses of the completion's tokens [n], which of them were the most likely choice [n]). Of what
    does not fit into the context window, the oldest tokens are left out.
    """
    device, C, results = model.token_embedding.weight.device, model.config.context_length, [None] * len(pairs)
    rows = [(list(context) + list(completion))[-C - 1 :] for context, completion in pairs]
    alike = {}  # what the model reads -> the pairs that it serves: answers of one token share their question
    for i, row in enumerate(rows):
        alike.setdefault(tuple(row[:-1]), []).append(i)
    order = sorted(alike, key=len)  # alike in length: little padding
    for group in BatchSampler(order, batch_size, drop_last=False):
        tokens = torch.zeros(len(group), max(map(len, group)), dtype=torch.long)
        for k, read in enumerate(group):
            tokens[k, : len(read)] = torch.tensor(read)
        hidden = model.hidden(tokens.to(device))  # [B, T, D]
        for k, i in ((k, i) for k, read in enumerate(group) for i in alike[read]):
            row, n = rows[i], min(len(pairs[i][1]), len(rows[i]) - 1)
            targets = torch.tensor(row[len(row) - n :], device=device, dtype=torch.long)
            logits = model.head(hidden[k, len(row) - 1 - n : len(row) - 1]).float()  # [n, V]
            losses = F.cross_entropy(logits, targets, reduction="none").cpu()
            results[i] = losses, (logits.argmax(dim=-1) == targets).cpu()
    return results


@dataclass(frozen=True)
class Perplexity:
    """Per token, and as bits per byte, which compares across tokenizers; intervals from drawing whole texts.

    `sums` [N, 3]: loss in nats, tokens and bytes of each text.
    """

    per_token: float
    per_token_interval: tuple
    bits_per_byte: float
    bits_per_byte_interval: tuple
    sums: torch.Tensor


def perplexity(model, tokenizer, texts):
    """`Perplexity` of texts, or of pairs (context, continuation), of which only the continuation counts.

    <|endoftext|> comes first, so that the first token is predicted too. The window moves by half a context. Raises
    ValueError where there is nothing to predict.
    """
    stride, sums = max(1, model.config.context_length // 2), []
    for text in as_list(texts):
        context, continuation = ("", text) if isinstance(text, str) else text
        before = [tokenizer.eot_token, *tokenizer.encode_ordinary(context)]
        ids = tokenizer.encode_ordinary(continuation)
        if ids:
            with evaluating(model):
                nats = token_losses(model, before + ids, stride)[-len(ids) :].sum().item()
            sums.append([nats, len(ids), len(valid_unicode(continuation).encode("utf-8"))])
    if not sums:
        raise ValueError("there is no text to predict")
    return perplexity_of(torch.tensor(sums, dtype=torch.float64))


def perplexity_of(sums):
    """`Perplexity` from the nats, tokens and bytes of each text: sums [N, 3]."""

    def per_token(rows):
        return (rows[:, 0].sum() / rows[:, 1].sum()).exp().item()

    def bits(rows):
        return (rows[:, 0].sum() / rows[:, 2].sum()).item() / math.log(2)

    return Perplexity(per_token(sums), bootstrap(sums, per_token), bits(sums), bootstrap(sums, bits), sums)


@dataclass(frozen=True)
class Preference:
    """Of N pairs: how often a was better, equal, worse; the win rate, ties counting half, and its interval."""

    wins: int
    ties: int
    losses: int
    win_rate: float
    interval: tuple


def pairwise(scores_a, scores_b):
    """`Preference` for a over b by their scores on the same entries; pairs with a None are left out.

    The interval is a bootstrap over entries. Raises ValueError where no pair is left, or a score is NaN.
    """
    pairs = [(a, b) for a, b in zip(scores_a, scores_b, strict=True) if a is not None and b is not None]
    if not pairs:
        raise ValueError("there is no pair of scores to compare")
    if any(a != a or b != b for a, b in pairs):
        raise ValueError("a score is NaN, which is neither better nor worse than another")
    points = torch.tensor([0.5 + 0.5 * ((a > b) - (a < b)) for a, b in pairs], dtype=torch.float64)
    counts = Counter(points.tolist())
    interval = bootstrap(points, lambda draw: draw.mean().item())
    return Preference(counts[1.0], counts[0.5], counts[0.0], points.mean().item(), interval)


def cohen_kappa(first, second):
    """How far two raters agree beyond chance, on the same items (Cohen 1960): 1 is perfect, 0 is what chance gives.

    Where chance would always agree (both gave one and the same label only), it is not defined: nan.
    """
    n = len(first)
    if n == 0 or n != len(second):
        raise ValueError(f"two raters must rate the same items; got {n} and {len(second)} ratings")
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    one, two = Counter(first), Counter(second)
    expected = sum(one[label] * two[label] for label in one) / n**2
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


def overlap(answer, reference):
    """How many words two texts share, from 0 to 1: F1 over words, as for SQuAD (Rajpurkar et al. 2016)."""
    a, b = (Counter(regex.findall(r"\w+", text.casefold())) for text in (answer, reference))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def distinct_n(texts, n):
    """Different n-grams of words in the texts together, divided by all of them (Li et al. 2016): 1 is no repetition."""
    if n < 1:
        raise ValueError(f"n is {n}; a gram has at least one word")
    grams = [gram for text in as_list(texts) for gram in zip(*(text.split()[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text, n=3):
    """The share of a text's n-grams of words that stood in it before: 0 for none, near 1 for a loop."""
    different = distinct_n([text], n)  # 0 where the text is too short for any
    return 1 - different if different else 0.0
