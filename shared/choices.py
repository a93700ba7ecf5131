"""Does a model choose right? Multiple choice, MMLU's questions, minimal pairs, the last words of passages.

A model chooses what it gives the larger probability: nobody reads an answer. Every function that reads text takes the
tokenizer, a tiktoken.Encoding, as its second argument, and puts <|endoftext|> before each text.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from shared.batches import as_list
from shared.evaluation import perplexity_of, score_completions
from shared.generation import CachePass, KVCache
from shared.metrics import wilson
from shared.runtime import evaluating
from shared.tokenizer import valid_unicode


@dataclass(frozen=True)
class Choices:
    """Of N questions: the share that was right, Wilson's interval, what guessing gives, `right` [N], what was cut.

    Cut are the questions that lost their beginning because they did not fit into the context.
    """

    share: float
    interval: tuple
    chance: float
    right: torch.Tensor
    cut: int


def choices_of(right, chance, cut=0):
    """`Choices` from which answers were `right` [N]."""
    k, n = sum(map(bool, right)), len(right)
    return Choices(k / n, wilson(k, n), chance, torch.as_tensor(right), cut)


RULES = ("sum", "token", "byte")  # what the log-likelihood of a choice is divided by: nothing, its tokens, its bytes


def multiple_choice(model, tokenizer, items, by="token"):
    """`Choices` of items {"query", "choices", "gold"}: the choice with the largest log-likelihood after the query.

    `by`: "sum" of the choice's tokens, or that divided by its "token"s or "byte"s, so that short choices win nothing
    by being short. Raises ValueError for an item without choices, a gold that is none of them, or a choice that alone
    is longer than the context; FloatingPointError where the model gives NaN.
    """
    if by not in RULES:
        raise ValueError(f"by is {by!r}; it must be sum, token or byte")
    return by_every_rule(model, tokenizer, items)[by]


def by_every_rule(model, tokenizer, items):
    """{rule: `Choices`} of `multiple_choice` for "sum", "token" and "byte", from one reading."""
    items, right, cut, C = as_list(items), {rule: [] for rule in RULES}, 0, model.config.context_length
    for i, item in enumerate(items):
        if item["gold"] not in range(len(as_list(item["choices"]))):
            raise ValueError(f"item {i}: gold is {item['gold']}; there are {len(item['choices'])} choices")
        query = [tokenizer.eot_token, *tokenizer.encode_ordinary(item["query"])]
        choices = [tokenizer.encode_ordinary(" " + choice) for choice in item["choices"]]
        longest = max(map(len, choices))
        if longest > C:  # part of it would have no loss, but be counted
            raise ValueError(f"item {i}: a choice has {longest:,} tokens; the context holds {C}")
        fits = len(query) + longest <= C + 1
        cut += not fits
        with evaluating(model):
            losses = score_choices(model, query, choices) if fits else [
                losses for losses, _ in score_completions(model, [(query, ids) for ids in choices])]  # fmt: skip
        nats = [loss.sum().item() for loss in losses]
        if any(map(math.isnan, nats)):
            raise FloatingPointError(f"item {i}: the model's loss is NaN; its weights are damaged")
        sizes = {"sum": [1] * len(choices), "token": map(len, choices),
                 "byte": [len(valid_unicode(choice).encode("utf-8")) + 1 for choice in item["choices"]]}  # fmt: skip
        for rule in RULES:
            values = [total / size for total, size in zip(nats, sizes[rule], strict=True)]
            right[rule].append(values.index(min(values)) == item["gold"])
    if not items:
        raise ValueError("there are no items")
    chance = sum(1 / len(item["choices"]) for item in items) / len(items)
    return {rule: choices_of(answers, chance, cut) for rule, answers in right.items()}


@torch.no_grad()
def score_choices(model, query, choices):
    """The losses of the tokens of each choice after a query, which is read once: ids, lists of ids -> tensors [n].

    Together they must fit into the context. The keys and values of the query serve all choices.
    """
    n, device, read = len(choices), model.token_embedding.weight.device, max(map(len, choices)) - 1
    cache = KVCache(model, n, len(query) + read)
    hidden = model.hidden(torch.tensor([query], device=device), CachePass(cache, [0], len(query)))[:, -1:]
    hidden = hidden.expand(n, -1, -1)  # [n, 1, D]: it predicts the first token of each choice
    if read:
        cache.keys[:, 1:], cache.values[:, 1:], cache.tokens = cache.keys[:, :1], cache.values[:, :1], [query] * n
        rows = torch.tensor([(ids + [0] * read)[:read] for ids in choices], device=device)  # padded on the right
        hidden = torch.cat([hidden, model.hidden(rows, CachePass(cache, list(range(n)), read))], dim=1)
    return [F.cross_entropy(model.head(hidden[i, : len(ids)]).float(), torch.tensor(ids, device=device),
                            reduction="none").cpu() for i, ids in enumerate(choices)]  # fmt: skip


def minimal_pairs(model, tokenizer, pairs):
    """`Choices` for "all" and for each phenomenon: is the good sentence the more likely one (Warstadt et al. 2020)?

    `pairs` are dicts with "good", "bad" and "phenomenon", such as BLiMP's.
    """
    texts = [tokenizer.encode_ordinary(pair[which]) for pair in as_list(pairs) for which in ("good", "bad")]
    with evaluating(model):
        scored = score_completions(model, [([tokenizer.eot_token], ids) for ids in texts])
    good, bad = torch.stack([losses.sum() for losses, _ in scored]).view(-1, 2).T
    if (good + bad).isnan().any():
        raise FloatingPointError("the model's loss is NaN; its weights are damaged")
    groups = {"all": list(range(len(pairs)))}
    for i, pair in enumerate(pairs):
        groups.setdefault(pair["phenomenon"], []).append(i)
    return {name: choices_of((good < bad)[group], 0.5) for name, group in groups.items()}


def last_words(model, tokenizer, texts):
    """(`Choices`, `Perplexity`) of the last words of texts, such as LAMBADA's (Paperno et al. 2016).

    A word is right where greedy decoding writes all its tokens. Guessing is taken to be one word of the text's others,
    drawn at random.
    """
    parts, pairs = [text.rpartition(" ") for text in as_list(texts)], []
    for before, _, word in parts:
        pairs.append(([tokenizer.eot_token, *tokenizer.encode_ordinary(before)], tokenizer.encode_ordinary(" " + word)))
    with evaluating(model):
        scored = score_completions(model, pairs)
    if any(losses.isnan().any() for losses, _ in scored):
        raise FloatingPointError("the model's loss is NaN; its weights are damaged")
    right, chance, sums = [], 0, []
    for (losses, greedy), (before, _, word) in zip(scored, parts, strict=True):
        right.append(bool(greedy.all()))
        others = re.findall(r"\w+", before)
        chance += others.count(word) / max(1, len(others)) / len(parts)
        sums.append([losses.sum(), len(losses), len(valid_unicode(word).encode("utf-8")) + 1])
    return choices_of(right, chance), perplexity_of(torch.tensor(sums, dtype=torch.float64))


def mmlu_items(records, dev=(), shots=0, tokenizer=None, max_tokens=None):
    """MMLU's questions (Hendrycks et al. 2021) as items for `multiple_choice`, whose choices are the letters A to D.

    Each query begins with up to `shots` solved questions of its subject from `dev`: as many as fit into `max_tokens`,
    for which `tokenizer` is needed. The item's "shots" says how many they are.
    """
    items, room = [], None
    if shots < 0 or (max_tokens is not None and tokenizer is None):
        raise ValueError(f"shots is {shots} (at least 0), max_tokens {max_tokens} (needs a tokenizer to count them)")
    if max_tokens is not None:  # less <|endoftext|> before the query and a letter after it
        room = max_tokens - 1 - max(len(tokenizer.encode_ordinary(f" {letter}")) for letter in "ABCD")
    for record in records:
        query, solved = _mmlu_question(record), [d for d in dev if d["subject"] == record["subject"]][:shots]
        subject = record["subject"].replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}."
        for n in range(len(solved), -1, -1):
            shown = "".join(f"{_mmlu_question(d)} {'ABCD'[d['gold']]}\n\n" for d in solved[:n])
            text = f"{head}\n\n{shown}{query}"
            if n == 0 or room is None or len(tokenizer.encode_ordinary(text)) <= room:
                break
        items.append({"query": text, "choices": list("ABCD"), "gold": record["gold"], "shots": n})
    return items


def _mmlu_question(record):
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", record["choices"], strict=True))
    return f"{record['question']}{choices}\nAnswer:"
