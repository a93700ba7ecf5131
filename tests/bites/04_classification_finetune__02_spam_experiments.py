"""What is broken in lesson 4.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the last real token is one too late", find="device=hidden.device), lengths - 1]",
             replace="device=hidden.device), lengths.clamp(max=hidden.shape[1] - 1)]", cell_contains="def pool("),
    Mutation("filling counts in the mean", find="(hidden * real[:, :, None]).sum(dim=1) / lengths[:, None]",
             replace="hidden.mean(dim=1)"),
    Mutation("the interval forgets to divide by the root of n", find=" * math.sqrt(1 / n + overlap)", replace=""),
    Mutation("two runs of a split count as two", find="[sum(group) / len(group) for group in groups.values()]",
             replace="values"),
    Mutation("splits that overlap count as independent", find="groups.values()], overlap=2 / 7)",
             replace="groups.values()])"),
    Mutation("differences across runs", find="score(reference, n, seed) for seed in seeds",
             replace="score(reference, n, seeds[0]) for seed in seeds"),
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
    Mutation("the costs change places", find="1000 * (C_FP * fp + C_FN * fn)",
             replace="1000 * (C_FN * fp + C_FP * fn)"),
]

SMALLER = {
    "= split(messages, seed=1)": "= split(messages[::2], seed=1)",
    "steps=100": "steps=40",
    "train_reader(chosen, pretrained=False).predict(test_texts)[1][:, 1]": "scores.flip(0)",
}
LEFT_OUT = ["from spam_smollm2 import by_prompt", "survived = {}", "transfer = {", "false_alarms, recall = roc_curve"]
WRONG_ANSWERS = {
    "scores_after": """
        def scores_after(k):
            def cut(text):
                return tokenizer.decode(tokenizer.encode_ordinary(text)[:k])

            reader = train_reader([(label, cut(text)) for label, text in chosen])
            return reader.predict(test_texts)[1][:, 1]  # what is to be tested is not cut
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
