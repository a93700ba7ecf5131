"""What is broken in lesson 4.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the last real token is one too late", find="device=hidden.device), lengths - 1]",
             replace="device=hidden.device), lengths.clamp(max=hidden.shape[1] - 1)]", cell_contains="def pool("),
    Mutation("filling counts in the mean", find="(hidden * real[:, :, None]).sum(dim=1) / lengths[:, None]",
             replace="hidden.mean(dim=1)"),
    Mutation("the interval forgets to divide by the root of n", find="values.std().item() / math.sqrt(len(values))",
             replace="values.std().item()"),
    Mutation("differences across seeds", find='balanced_accuracy(rows[reference][seed]["confusion"])',
             replace='balanced_accuracy(rows[reference][0]["confusion"])'),
    Mutation("F1 as accuracy of spam", find="return 2 * tp / (2 * tp + fp + fn)", replace="return tp / (tp + fp + fn)"),
    Mutation("the test has one side", find="return a, b, min(1.0, 2 * tail)", replace="return a, b, min(1.0, tail)"),
    Mutation("the tail stops before the last", find="range(min(a, b) + 1)", replace="range(min(a, b))"),
    Mutation("score and share change places", find="(scores[g].mean().item(), labels[g].mean().item(), int",
             replace="(labels[g].mean().item(), scores[g].mean().item(), int"),
    Mutation("the odds are turned the wrong way", find="* share / (1 - share)", replace="/ share * (1 - share)"),
    Mutation("the two costs are mixed up", find="best_p = C_FP / (C_FP + C_FN)",
             replace="best_p = C_FN / (C_FP + C_FN)"),
    Mutation("the dearest threshold", find="thresholds[curve.argmin()].item()",
             replace="thresholds[curve.argmax()].item()"),
]

SMALLER = {
    "= split(messages, seed=1)": "= split(messages[::2], seed=1)",
    "per_label=100": "per_label=64",
    "train_reader(pretrained=False)[1]": "scores.flip(0)",
    "for seed in range(5):\n    natural, test": "for seed in range(2):\n    natural, test",
}
LEFT_OUT = ["survived = {}", "k = survived[", "alone = model.predict", "transfer = {"]
WRONG_ANSWERS = {
    "seeds_needed": """
        def seeds_needed(alpha):
            n = 1
            while 0.5**n > alpha:  # one side only
                n += 1
            return n
    """,
    "calibration_error": """
        def calibration_error(bins):
            return sum(abs(score - share) for score, share, n in bins) / len(bins)  # every bin counts alike
    """,
    "holm": """
        def holm(p_values, alpha=0.05):
            return [p <= alpha / len(p_values) for p in p_values]  # Bonferroni: too strict after the first
    """,
}
