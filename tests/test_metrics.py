"""Metrics: scikit-learn and SciPy as the oracles, published values, and what the intervals promise."""

import math

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shared.metrics import (
    bootstrap,
    calibration,
    classification_metrics,
    f1_score,
    mcnemar,
    precision_recall_curve,
    roc_auc,
    roc_curve,
    wilson,
)


def sample(n=200, seed=0, levels=None, rate=0.3):
    """Labels and scores that know something of them; `levels`: so few different scores that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(n, generator=generator) < rate).long()
    labels[:2] = torch.tensor([0, 1])
    scores = torch.sigmoid(1.5 * labels - 0.7 + torch.randn(n, generator=generator))
    return labels, scores if levels is None else (scores * levels).round() / levels


# --- counts, shares and curves, with scikit-learn as the oracle ------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
@pytest.mark.parametrize("levels", [None, 4])
def test_shares_are_those_of_scikit_learn(threshold, levels):
    labels, scores = sample(levels=levels)
    ours = classification_metrics(labels, scores, threshold)
    called = (scores >= threshold).long()
    assert 0 < called.sum() < len(called)
    assert ours.n == 200 and ours.confusion == sklearn.metrics.confusion_matrix(labels, called).tolist()
    assert ours.accuracy == pytest.approx(sklearn.metrics.accuracy_score(labels, called))
    assert ours.precision == pytest.approx(sklearn.metrics.precision_score(labels, called))
    assert ours.recall == pytest.approx(sklearn.metrics.recall_score(labels, called))
    assert ours.f1 == pytest.approx(sklearn.metrics.f1_score(labels, called), abs=1e-6)
    (tn, fp), (fn, tp) = ours.confusion
    assert ours.accuracy_interval == wilson(tn + tp, 200)
    assert ours.precision_interval == wilson(tp, tp + fp)
    assert ours.recall_interval == wilson(tp, tp + fn)
    assert ours.f1_interval[0] < ours.f1 < ours.f1_interval[1]


def test_a_score_at_the_threshold_counts_as_one():
    ours = classification_metrics([0, 1], [0.25, 0.5], threshold=0.5)
    assert ours.confusion == [[1, 0], [0, 1]] and ours.accuracy == ours.f1 == 1.0
    assert ours.accuracy_interval[0] < 0.4 and ours.accuracy_interval[1] == 1.0  # two are not many


def test_where_nothing_is_called_one():
    ours = classification_metrics([0, 0, 1], [0.1, 0.2, 0.3])
    assert ours.confusion == [[2, 0], [1, 0]] and ours.precision == ours.recall == ours.f1 == 0.0
    assert ours.precision_interval == (0.0, 1.0)
    assert ours.f1_interval[0] == 0.0 < ours.f1_interval[1] < 0.9  # one spam that was missed proves little


@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [0.0, 1.0, 1.0, 0.0], [False, True, True, False]])
@pytest.mark.parametrize("kind", [list, torch.tensor, "numpy"])
def test_labels_and_scores_of_any_kind(labels, kind):
    scores = [0.1, 0.2, 0.8, 0.9]
    if kind == "numpy":
        kind = np.array
    ours = classification_metrics(kind(labels), kind(scores))
    assert ours.confusion == [[1, 1], [1, 1]] and ours.f1 == 0.5
    assert roc_auc(kind(labels), kind(scores)) == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_curves_and_areas_are_those_of_scikit_learn(pairs):
    labels, scores = [int(label) for label, _ in pairs] + [0, 1], [score / 6 for _, score in pairs] + [0.5, 0.5]
    x, y = roc_curve(labels, scores)
    their_x, their_y, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    assert x.tolist() == pytest.approx(their_x.tolist()) and y.tolist() == pytest.approx(their_y.tolist())
    assert roc_auc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    recall, precision = precision_recall_curve(labels, scores)
    their_precision, their_recall, _ = sklearn.metrics.precision_recall_curve(labels, scores)  # ends with (0, 1)
    assert recall.tolist() == pytest.approx(their_recall[-2::-1].tolist())
    assert precision.tolist() == pytest.approx(their_precision[-2::-1].tolist())


def test_area_is_the_share_of_pairs_in_the_right_order():
    labels, scores = sample(60, levels=5)
    ones, zeros = scores[labels == 1], scores[labels == 0]
    assert len(set(ones.tolist()) & set(zeros.tolist())) > 1  # there are ties across the labels
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ones.tolist() for b in zeros.tolist()]
    assert roc_auc(labels, scores) == pytest.approx(sum(pairs) / len(pairs))
    assert roc_auc(labels, -scores) == pytest.approx(1 - sum(pairs) / len(pairs))
    assert roc_auc(labels, torch.ones(60)) == pytest.approx(0.5)


def test_order_does_not_matter():
    labels, scores = sample(80, levels=3)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    for curve in (roc_curve, precision_recall_curve):
        for a, b in zip(curve(labels, scores), curve(labels[order], scores[order]), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
@pytest.mark.parametrize("function", [classification_metrics, roc_curve, precision_recall_curve, roc_auc])
def test_both_labels_must_occur(function, labels):
    with pytest.raises(ValueError, match="both labels"):
        function(labels, [0.5] * len(labels))


@pytest.mark.parametrize("function", [classification_metrics, roc_curve, precision_recall_curve, roc_auc])
def test_labels_and_scores_must_fit_together(function):
    with pytest.raises(ValueError, match=r"3 labels.*2 scores"):
        function([0, 1, 1], [0.5, 0.6])
    with pytest.raises(ValueError, match=r"\[0, 1, 2\]"):
        function([0, 1, 2], [0.5, 0.6, 0.7])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_f1_is_the_harmonic_mean(pairs):
    tp = sum(label and called for label, called in pairs)
    precision, recall = tp / max(1, sum(c for _, c in pairs)), tp / max(1, sum(label for label, _ in pairs))
    expected = 2 * precision * recall / (precision + recall) if tp else 0.0
    assert f1_score(torch.tensor(pairs).long()) == pytest.approx(expected, abs=1e-6)


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bins", [1, 4, 10])
def test_calibration_equals_a_plain_loop(n_bins):
    labels, scores = sample(300)
    scores[0], scores[1] = 0.0, 1.0  # both ends belong to a bin
    expected = []
    for b in range(n_bins):
        inside = [i for i, s in enumerate(scores.tolist()) if min(math.floor(s * n_bins), n_bins - 1) == b]
        if inside:
            mean = sum(scores[i].item() for i in inside) / len(inside)
            expected.append((mean, sum(labels[i].item() for i in inside) / len(inside), len(inside)))
    found = calibration(labels, scores, n_bins)
    assert sum(n for _, _, n in found) == 300 and len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs)


def test_calibration_is_that_of_scikit_learn():
    labels, scores = sample(500, seed=3)
    shares, means = sklearn.calibration.calibration_curve(labels.numpy(), scores.double().numpy(), n_bins=10)
    found = calibration(labels, scores)
    assert [share for _, share, _ in found] == pytest.approx(shares.tolist())
    assert [mean for mean, _, _ in found] == pytest.approx(means.tolist())


def test_scores_that_mean_what_they_say():
    scores = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(20_000, generator=torch.Generator().manual_seed(1)) < scores).long()
    assert all(abs(mean - share) < 0.04 for mean, share, _ in calibration(labels, scores))
    error = sum(n * abs(mean - share) for mean, share, n in calibration(1 - labels, scores)) / 20_000
    assert 0.45 < error < 0.55  # turned round: the mean of |s - (1 - s)| for even scores is 1/2


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718),
    (0, 10, 0.0, 0.278),
])  # fmt: skip
def test_wilson_gives_the_published_values(k, n, low, high):
    """Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3; the last: 3.84 / (10 + 3.84)."""
    assert wilson(k, n) == pytest.approx((low, high), abs=1.5e-4 if n > 10 else 6e-4)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1.5e-4 if n > 10 else 6e-4)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([1.0, 1.96, 2.58]))
def test_the_ends_of_wilsons_interval_are_z_deviations_away(n, share, z):
    """Its definition: the shares p at which k/n lies z standard deviations, sqrt(p (1 - p) / n), from p."""
    k = round(n * share)
    for p in wilson(k, n, z):
        assert 0 <= p <= 1
        assert (k / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, rel=1e-6, abs=1e-9)


def test_wilson_without_examples_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers():
    for p in (0.1, 0.5, 0.95):
        hits = torch.distributions.Binomial(100, torch.tensor(p))
        torch.manual_seed(0)
        inside = [low <= p <= high for low, high in (wilson(int(k), 100) for k in hits.sample((2000,)))]
        assert 0.92 < sum(inside) / 2000 < 0.98


def test_bootstrap_covers():
    """Of 300 samples of 60, about 95 % of the intervals hold the true mean; those of half the width hold far fewer."""
    generator, inside, narrow = torch.Generator().manual_seed(0), 0, 0
    for seed in range(300):
        low, high = bootstrap(torch.randn(60, generator=generator) + 2, torch.mean, n=200, seed=seed)
        inside += low <= 2 <= high
        narrow += abs(2 - (low + high) / 2) <= (high - low) / 4
    assert 0.90 < inside / 300 < 0.98 and narrow / 300 < 0.80


def test_bootstrap_of_few_pieces_is_as_wide_as_students_t():
    """The middle 95 % of the draws would be 0.82 times as wide for ten pieces, and cover 90 %."""
    for n in (8, 10, 16, 30, 100):
        pieces = stats.norm.ppf((torch.arange(n) + 0.5) / n)
        low, high = bootstrap(torch.tensor(pieces), lambda draw: draw.mean().item(), n=5000)
        half = stats.t.ppf(0.975, n - 1) * pieces.std(ddof=1) / n**0.5
        assert (-low, high) == pytest.approx((half, half), rel=0.07)
    assert bootstrap(torch.ones(1), torch.mean) == (1, 1)


def test_bootstrap_equals_scipys():
    labels, scores = sample(150)
    pairs = torch.stack([labels, (scores > 0.5).long()], dim=1)
    ours = bootstrap(pairs, f1_score, n=2000)
    statistic = lambda i: f1_score(pairs[torch.as_tensor(i)])  # noqa: E731
    share = 1 - 2 * stats.norm.cdf(-1.96 * (1 + 2 / 149))
    theirs = stats.bootstrap((np.arange(150),), statistic, n_resamples=2000, vectorized=False, confidence_level=share,
                             method="percentile", rng=np.random.default_rng(0)).confidence_interval  # fmt: skip
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.015)
    assert bootstrap(pairs, f1_score, n=50, seed=1) == bootstrap(pairs, f1_score, n=50, seed=1)
    assert bootstrap(pairs, f1_score, n=50, seed=1) != bootstrap(pairs, f1_score, n=50, seed=2)


# --- two models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 5), (10, 1), (3, 12), (700, 640), (1500, 2)])
def test_mcnemar_is_the_exact_binomial_test(a, b):
    right_a = torch.tensor([1] * a + [0] * b + [1] * 7 + [0] * 3).bool()
    right_b = torch.tensor([0] * a + [1] * b + [1] * 7 + [0] * 3).bool()
    order = torch.randperm(len(right_a), generator=torch.Generator().manual_seed(0))
    expected = stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    found = mcnemar(right_a[order], right_b[order])
    assert found[:2] == (a, b) and found[2] == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert mcnemar(right_b.tolist(), right_a.tolist()) == (b, a, found[2])


def test_mcnemar_wants_the_same_examples():
    with pytest.raises(ValueError, match="shorter|longer"):
        mcnemar([True, False], [True])


def test_equal_models_seldom_differ():
    """With a fair coin the p-value is below 0.05 in at most 5 % of the cases: the test is exact, not approximate."""
    torch.manual_seed(0)
    p_values = [mcnemar(*(torch.rand(2, 80) < 0.9))[2] for _ in range(400)]
    assert sum(p < 0.05 for p in p_values) <= 0.05 * 400
    assert sum(p < 0.5 for p in p_values) > 0.1 * 400


# --- what is no number -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [classification_metrics, roc_auc, roc_curve, precision_recall_curve])
def test_a_score_that_is_nan_is_named(measure):
    labels, scores = sample(20)
    scores[7] = math.nan
    with pytest.raises(ValueError, match="the score of text 7 is NaN"):
        measure(labels, scores)
    with pytest.raises(ValueError, match="the score of text 1 is NaN"):
        measure([0, 1], [0.5, math.nan])


@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1, math.inf])
def test_only_probabilities_can_be_calibrated(score):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        calibration([0, 1, 1], [0.2, score, 0.9])


def test_nothing_has_no_interval():
    with pytest.raises(ValueError, match="there is nothing to draw from"):
        bootstrap(torch.zeros(0), lambda draw: draw.mean().item())


def test_no_error_is_no_certainty():
    """A bootstrap of messages that are all right has no width; ten of ten right are still ten only."""
    found = classification_metrics([0] * 20 + [1] * 10, [0.1] * 20 + [0.9] * 10)
    low, high = wilson(10, 10)
    assert found.f1 == 1 and found.f1_interval == (pytest.approx(2 * low / (1 + low)), pytest.approx(1.0)) and low < 0.8
    nothing = classification_metrics([0] * 20 + [1] * 10, [0.1] * 30)
    assert nothing.f1 == 0 and nothing.f1_interval[0] == 0 < nothing.f1_interval[1] < 0.5
