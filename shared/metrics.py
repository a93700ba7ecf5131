"""What a classifier got right, and how sure that is: shares, curves, intervals, and a test for two models.

Labels are 0 or 1, a score is the probability of 1; N examples.
"""

import math
from dataclasses import dataclass

import torch


def wilson(k, n, z=1.96):
    """95 % interval (low, high) of a share, k of n (Wilson 1927). Unlike k/n +- 2 sd it stays within [0, 1]."""
    if n == 0:
        return 0.0, 1.0
    center, half = k / n + z * z / (2 * n), z * math.sqrt(k / n * (1 - k / n) / n + (z / (2 * n)) ** 2)
    return max(0.0, (center - half) / (1 + z * z / n)), min(1.0, (center + half) / (1 + z * z / n))


def bootstrap(pieces, statistic, n=1000, seed=0):
    """95 % interval (low, high) of `statistic` over independent pieces [N, ...], by drawing them with replacement.

    `statistic` is a function of a tensor [N, ...] -> number; n draws of N pieces, the middle 95 % (Efron 1979), or more
    where the pieces are few, so that from 8 on as many intervals hold the truth as of Student's (Hesterberg 2015).
    """
    if not len(pieces):
        raise ValueError("there is nothing to draw from: no pieces")
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(pieces[torch.randint(len(pieces), (len(pieces),), generator=generator)]) for _ in range(n)]
    tail = torch.special.ndtr(torch.tensor(-1.96 * (1 + 2 / max(1, len(pieces) - 1))))  # of many pieces: 0.025
    return tuple(torch.tensor(draws).quantile(torch.stack([tail, 1 - tail])).tolist())


def mcnemar(right_a, right_b):
    """Which of two models is better on the same examples: (a alone right, b alone right, p-value).

    right_a, right_b [N]: what each got right. Only examples count that one got right and the other wrong; for equally
    good models each is a fair coin, and p is how likely a difference at least as large would be (McNemar 1947, exact).
    """
    a = sum(bool(x and not y) for x, y in zip(right_a, right_b, strict=True))
    b = sum(bool(y and not x) for x, y in zip(right_a, right_b, strict=True))
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
    return a, b, min(1.0, 2 * tail)


@dataclass(frozen=True)
class Metrics:
    """What a classifier got right, with 95 % intervals (low, high). `confusion[i][j]`: label i taken for label j.

    Precision: how much of what is called spam is spam. Recall: how much of the spam is found. F1: their harmonic mean.
    """

    n: int
    confusion: list
    accuracy: float
    accuracy_interval: tuple
    precision: float
    precision_interval: tuple
    recall: float
    recall_interval: tuple
    f1: float
    f1_interval: tuple


def classification_metrics(labels, scores, threshold=0.5):
    """`Metrics` of scores [N], the probability of label 1, for labels [N] (0 or 1).

    A score of `threshold` or more is called 1. Wilson's intervals; for F1 the bootstrap. Where nothing was called 1,
    the precision is 0. Raises ValueError unless both labels occur.
    """
    labels, scores = _checked(labels, scores)
    called = (scores >= threshold).long()
    confusion = torch.bincount(2 * labels + called, minlength=4).view(2, 2).tolist()
    (tn, fp), (fn, tp) = confusion
    pairs = torch.stack([labels, called], dim=1)
    f1, interval = f1_score(pairs), bootstrap(pairs, f1_score)
    if interval[0] == interval[1]:  # no error to be drawn: with J = tp / (tp + fp + fn), a share, F1 is 2 J / (1 + J)
        interval = tuple(2 * share / (1 + share) for share in wilson(tp, tp + fp + fn))
    return Metrics(
        len(labels), confusion, (tn + tp) / len(labels), wilson(tn + tp, len(labels)),
        tp / max(1, tp + fp), wilson(tp, tp + fp), tp / (tp + fn), wilson(tp, tp + fn),
        f1, interval,
    )  # fmt: skip


def _checked(labels, scores):
    """Both as tensors [N]; raises ValueError unless each label has a score, a number, and both labels occur."""
    labels, scores = torch.as_tensor(labels), torch.as_tensor(scores)
    if scores.isnan().any():
        raise ValueError(f"the score of text {int(scores.isnan().nonzero()[0])} is NaN")
    if len(labels) != len(scores) or labels.unique().tolist() != [0, 1]:
        found = f"{len(labels)} labels ({labels.unique().tolist()}) and {len(scores)} scores"
        raise ValueError(f"metrics need a label, 0 or 1, and a score for each text, and both labels; got {found}")
    return labels.long(), scores


def f1_score(pairs):
    """F1 of label 1: pairs [N, 2] of (label, prediction), each 0 or 1."""
    labels, called = pairs.T
    return (2 * (labels * called).sum() / (labels + called).sum().clamp(min=1)).item()


def roc_curve(labels, scores):
    """(false positive rate, recall) at every threshold, from strict to lenient, beginning at (0, 0): two tensors."""
    hits, misses = _hits_by_threshold(labels, scores)
    start = hits.new_zeros(1)
    return torch.cat([start, misses / misses[-1]]), torch.cat([start, hits / hits[-1]])


def precision_recall_curve(labels, scores):
    """(recall, precision) at every threshold, from strict to lenient: two tensors."""
    hits, misses = _hits_by_threshold(labels, scores)
    return hits / hits[-1], hits / (hits + misses)


def _hits_by_threshold(labels, scores):
    """How many with label 1, and with label 0, have a score of at least s, for each distinct score s, downwards."""
    labels, scores = _checked(labels, scores)
    labels = labels.double()
    order = scores.argsort(descending=True)
    last = torch.cat([scores[order].diff() != 0, torch.tensor([True])])  # the last of equal scores
    return labels[order].cumsum(0)[last], (1 - labels[order]).cumsum(0)[last]


def roc_auc(labels, scores):
    """Area under the ROC curve: how likely a random 1 scores above a random 0, equals counting half."""
    x, y = roc_curve(labels, scores)
    return torch.trapezoid(y, x).item()


def calibration(labels, scores, n_bins=10):
    """[(mean score, share of label 1, n), ...] of the texts in each of `n_bins` equal ranges of the score.

    The weighted mean of |score - share| is the expected calibration error (Guo et al. 2017, equation 5).
    """
    labels, scores = torch.as_tensor(labels).double(), torch.as_tensor(scores).double()
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("a score is no probability: it must be between 0 and 1")
    bins = (scores * n_bins).long().clamp(max=n_bins - 1)
    groups = [bins == b for b in range(n_bins) if (bins == b).any()]
    return [(scores[g].mean().item(), labels[g].mean().item(), int(g.sum())) for g in groups]
