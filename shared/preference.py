"""Preference tuning: pairs of answers, a reward model (Bradley-Terry), direct preference optimization (DPO).

A pair is a dict with `instruction`, `input` (may be empty), `chosen` and `rejected`, all text. A model is one with
`config`, `hidden` and `head`; any of this course's will do.

Shapes: B pairs (so 2B rows of a batch: the chosen answers first, then the rejected ones), T tokens, N pairs in all.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from shared.batches import LengthBuckets, pad
from shared.classification import last_hidden
from shared.instructions import check_entries, collate_instructions, encode_entry
from shared.loss import IGNORE, mixed_precision
from shared.runtime import evaluating
from shared.tokenizer import valid_unicode
from shared.training import train


def check_pairs(rows):
    """Keep the usable rows: (pairs, problems), a problem being (row counted from 0, what is wrong with it).

    A missing `input` is an empty one. Left out are rows without a prompt or without one of the two answers, those whose
    answers are equal, and those with the prompt of an earlier row, letter case and spacing aside.
    """
    return check_entries(rows, _checked_pair)


def _checked_pair(row):
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object with instruction, input, chosen and rejected")
    pair = row | {"input": "" if row.get("input") is None else row["input"]}
    for field in ("instruction", "input", "chosen", "rejected"):
        name = "prompt (instruction)" if field == "instruction" else field
        if field not in pair:
            raise ValueError(f"has no {name}")
        if not isinstance(pair[field], str):
            raise ValueError(f"has {pair[field]!r:.40} for {name}")
        pair[field] = valid_unicode(pair[field]).strip()
        if field != "input" and not pair[field]:
            raise ValueError(f"{name} is empty")
    if pair["chosen"] == pair["rejected"]:
        raise ValueError("chosen and rejected are equal: there is nothing to prefer")
    return pair


class PreferenceData(list):
    """Pairs as ((ids [n], is_answer [n]) of the chosen row, the same of the rejected one), the prompt before each.

    `encode` makes of an entry (with `output`) the ids of prompt and answer, the token that ends it included. A pair
    with a row of more than `max_tokens` is left out, for half an answer was never judged: `left_out` has their places.
    """

    def __init__(self, pairs, tokenizer, max_tokens, encode=encode_entry):
        self.left_out = []
        for i, pair in enumerate(pairs):
            if pair["chosen"] == pair["rejected"]:
                raise ValueError(f"pair {i}: chosen and rejected are equal; let check_pairs drop such pairs first")
            rows = []
            for name in ("chosen", "rejected"):
                prompt, answer = encode(pair | {"output": pair[name]}, tokenizer)
                ids = torch.tensor(prompt + answer)
                rows.append((ids, torch.arange(len(ids)) >= len(prompt)))
            if max(len(ids) for ids, _ in rows) > max_tokens:
                self.left_out.append(i)
            else:
                self.append(tuple(rows))
        if not self:
            raise ValueError(f"none of {len(pairs)} pairs fits into {max_tokens} tokens")


def collate_pairs(batch):
    """B pairs -> inputs, targets [2B, T]: B chosen rows, then B rejected ones; prompt and padding are IGNORE."""
    chosen, rejected = zip(*batch, strict=True)
    return collate_instructions([*chosen, *rejected])


def sequence_log_probs(model, inputs, targets):
    """log P(answer | prompt) of each row: inputs, targets [R, T] -> [R], the SUM over the targets that count."""
    counts = targets != IGNORE  # [R, T]
    logits = model.head(model.hidden(inputs)[counts]).float()  # [tokens that count, V]
    by_token = -F.cross_entropy(logits, targets[counts], reduction="none")
    return by_token.new_zeros(len(inputs)).index_add(0, counts.nonzero()[:, 0], by_token)


def pair_log_probs(model, data, batch_size=16):
    """`sequence_log_probs` of all pairs of `data`, without gradients: [N, 2], chosen and rejected.

    Of the reference it is computed once, before training. Raises FloatingPointError where a number is not finite.
    """
    device, found = next(model.parameters()).device, []
    with evaluating(model), mixed_precision(device):
        for start in range(0, len(data), batch_size):
            batch = collate_pairs(data[start : start + batch_size])
            found.append(sequence_log_probs(model, *(x.to(device) for x in batch)).view(2, -1).T.cpu())
    return only_finite(torch.cat(found), "log-probabilities of pair")


def only_finite(found, what):
    """The numbers `found`; FloatingPointError, which names the first place, where one is not finite."""
    if not found.isfinite().all():
        raise FloatingPointError(f"the {what} {int((~found.isfinite()).nonzero()[0, 0])} are not finite")
    return found


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta=0.1, *, label_smoothing=0.0, kind="sigmoid",
             lengths=None):  # fmt: skip
    """Mean loss of B pairs from log-probabilities [B]: -log sigmoid of the margin (Rafailov et al. 2023, eq. 7).

    `label_smoothing` is the share of pairs that are believed to be the wrong way round: "sigmoid" then mixes both
    orders (conservative DPO, Mitchell 2023), "robust" subtracts what they add on average (Chowdhury et al. 2024).
    "ipo" (Azar et al. 2023, eq. 17) wants each difference of log-ratios to be 1 / (2 beta), not more; with `lengths`,
    tokens of the chosen and rejected answers [B] each, log-ratios count per token, as in TRL.
    """
    check_settings(beta, label_smoothing, kind)
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected  # log-ratios [B]
    if kind == "ipo":
        if lengths is not None:
            chosen, rejected = chosen / lengths[0], rejected / lengths[1]
        return (chosen - rejected - 1 / (2 * beta)).square().mean()
    margins = beta * (chosen - rejected)
    right, turned = -F.logsigmoid(margins).mean(), -F.logsigmoid(-margins).mean()
    if kind == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * turned) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * turned


def check_settings(beta, label_smoothing=0.0, kind="sigmoid", nll=0.0):
    """Raises ValueError, naming the value and its bound, for settings that make no sense."""
    if not 0 < beta < math.inf:
        raise ValueError(f"beta is {beta}; it must be a finite number above 0")
    if not 0 <= label_smoothing < 0.5 or label_smoothing and kind == "ipo":
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5, for 'ipo' 0")
    if kind not in ("sigmoid", "robust", "ipo"):
        raise ValueError(f"kind is {kind!r}; it must be one of sigmoid, robust, ipo")
    if not 0 <= nll < math.inf:
        raise ValueError(f"nll is {nll}; it must be a finite number of at least 0")


def implicit_rewards(policy, reference, beta=0.1):
    """beta (log pi - log pi_ref) (Rafailov et al. 2023, section 4), of log-probabilities of any shape."""
    check_settings(beta)
    return beta * (policy - reference)


def win_share(margins):
    """How many of the margins [N] are above 0, exact ties counting half: before training all are 0, and this is 0.5."""
    margins = torch.as_tensor(margins, dtype=torch.float64)
    if not len(margins) or margins.isnan().any():
        raise ValueError(f"of {len(margins)} margins {int(margins.isnan().sum())} are NaN; a share needs numbers")
    return ((margins > 0).double() + 0.5 * (margins == 0).double()).mean().item()


def preference_loss(model, inputs, targets, reference, *, beta, label_smoothing=0.0, kind="sigmoid", nll=0.0):
    """`dpo_loss` of a batch, and `nll` times the mean -log P per token of its chosen answers (Pang et al. 2024).

    inputs, targets [2B, T] as of `collate_pairs`, reference [B, 2] -> [].
    """
    policy = sequence_log_probs(model, inputs, targets).view(2, -1)  # [2, B]
    lengths = (targets != IGNORE).sum(dim=1).view(2, -1)  # [2, B]
    loss = dpo_loss(*policy, *reference.T, beta, label_smoothing=label_smoothing, kind=kind, lengths=lengths)
    return loss - nll * policy[0].sum() / lengths[0].sum() if nll else loss


def train_dpo(model, data, reference, *, beta=0.1, label_smoothing=0.0, kind="sigmoid", nll=0.0, lr=1e-5, epochs=1,
              batch_size=8, seed=0, **settings):  # fmt: skip
    """Train `model` in place on the pairs of `data`, and return its History.

    `reference` [N, 2] is `pair_log_probs` of the model as it was. `settings` are those of `train`.
    """
    check_settings(beta, label_smoothing, kind, nll)
    if reference.shape != (len(data), 2):
        raise ValueError(f"reference is {list(reference.shape)}; {len(data)} pairs need [{len(data)}, 2]")
    if any(getattr(part, "p", 0) or getattr(part, "drop_rate", 0) for part in model.modules()):
        raise ValueError("dropout is on, and the reference is without: the margins would begin as noise; set it to 0")
    loader = pair_loader([*zip(data, reference, strict=True)], data, batch_size, seed, _collate_with_reference)
    loss_fn = partial(preference_loss, beta=beta, label_smoothing=label_smoothing, kind=kind, nll=nll)
    return train(model, loader, loss_fn=loss_fn, lr=lr, epochs=epochs, seed=seed, **settings)


def _collate_with_reference(batch):
    pairs, reference = zip(*batch, strict=True)
    return *collate_pairs(pairs), torch.stack(reference)  # last: a step that accumulates weighs batches by their pairs


def pair_loader(items, data, batch_size, seed, collate):
    """A DataLoader of `items`, one for each pair of `data`, in which pairs of like length share a batch."""
    sizes = [max(len(ids) for ids, _ in pair) for pair in data]
    buckets = LengthBuckets(sizes, batch_size, torch.Generator().manual_seed(seed))
    return DataLoader(items, batch_sampler=buckets, collate_fn=collate, generator=buckets.generator)


class RewardModel(nn.Module):
    """A model whose output is one number for a text: a linear layer on the last real token's hidden vector."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.config = backbone, backbone.config
        self.score = nn.Linear(backbone.config.emb_dim, 1, bias=False)
        nn.init.zeros_(self.score.weight)  # all texts begin equal
        self.score.to(backbone.token_embedding.weight)

    def forward(self, tokens, lengths):
        """tokens [R, T], lengths [R] -> rewards [R]."""
        return self.score(last_hidden(self.backbone, tokens, lengths))[:, 0].float()


def bradley_terry_loss(chosen, rejected):
    """-log sigmoid(r_chosen - r_rejected), the mean over pairs: rewards [B] twice -> []. Bradley and Terry 1952."""
    return -F.logsigmoid(chosen - rejected).mean()


def train_reward(model, data, *, lr=1e-4, epochs=1, batch_size=8, seed=0, **settings):
    """Train a `RewardModel` in place on the pairs of `data`: its History. `settings` are those of `train`."""
    loader = pair_loader(data, data, batch_size, seed, _collate_whole)
    return train(model, loader, loss_fn=_reward_loss, lr=lr, epochs=epochs, seed=seed, **settings)


def _collate_whole(batch):
    return pad([ids for rows in zip(*batch, strict=True) for ids, _ in rows])  # [2B, T], [2B]


def _reward_loss(model, tokens, lengths):
    return bradley_terry_loss(*model(tokens, lengths).view(2, -1))


def rewards(model, rows, batch_size=32):
    """A `RewardModel`'s numbers [N] for rows of ids (prompt and answer). FloatingPointError where one is not finite."""
    device, found = next(model.parameters()).device, []
    with evaluating(model), mixed_precision(device):
        for start in range(0, len(rows), batch_size):
            tokens, lengths = pad([torch.as_tensor(ids) for ids in rows[start : start + batch_size]])
            found.append(model(tokens.to(device), lengths.to(device)).cpu())
    return only_finite(torch.cat(found), "rewards from row")
