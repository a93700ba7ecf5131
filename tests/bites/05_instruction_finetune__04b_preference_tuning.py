"""How lesson 5.4b is broken, and a wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("means in place of sums", find="counts.nonzero()[:, 0], by_token)",
             replace="counts.nonzero()[:, 0], by_token) / counts.sum(dim=1)"),
    Mutation("the head reads the places one later", find="model.hidden(inputs)[counts]",
             replace="model.hidden(inputs)[counts.roll(1, 1)]"),
    Mutation("the rejected rows come first", find="[*chosen, *rejected]", replace="[*rejected, *chosen]"),
    Mutation("beta is forgotten", find="margins = beta * (chosen - rejected)", replace="margins = chosen - rejected"),
    Mutation("the reference counts double", find="policy_rejected - ref_rejected",
             replace="policy_rejected + ref_rejected", cell_contains="lengths=None"),
    Mutation("the smoothing is turned round", find="(1 - label_smoothing) * right + label_smoothing * turned",
             replace="(1 - label_smoothing) * turned + label_smoothing * right"),
    Mutation("IPO asks for twice as much", find="- 1 / (2 * beta)).square()", replace="- 1 / beta).square()"),
    Mutation("beta may be zero", find="if not 0 < beta < math.inf", replace="if not 0 <= beta < math.inf"),
    Mutation("the reference's columns are exchanged", find="*reference.T, beta, label",
             replace="*reference.flip(1).T, beta, label"),
    Mutation("the second term is on the rejected answers", find="nll * policy[0].sum() / lengths[0].sum()",
             replace="nll * policy[1].sum() / lengths[1].sum()"),
    Mutation("the second term pushes chosen answers down", find="return loss - nll *", replace="return loss + nll *"),
]  # fmt: skip

SMALLER = {
    "judge=360, pairs=160, prompts=48, small=2e-4": "judge=64, pairs=64, prompts=24, small=2e-4",
    "tokenizer, training[:560], epochs=passes(560, training)": "tokenizer, training[:160], epochs=1",
}
LEFT_OUT = ["tuned = copy.deepcopy(assistant)", "train_dpo(pushed, dpo_pairs", "plt.scatter(",
            "kept_whole = copy.deepcopy", "def show_arms(", "def paired(", "plt.axhline(0.5", 'show_arms("smollm2")',
            "told = ", "found = rewards(judge", "old, small = look("]
WRONG_ANSWERS = {
    "pair_weights": """
        def pair_weights(policy, reference, beta):
            ratios = policy - reference
            return beta * torch.sigmoid(beta * (ratios[:, 0] - ratios[:, 1]))  # the wrong sign
    """,
    "after_training": """
        def after_training(beta):
            copied = copy.deepcopy(assistant)
            train_dpo(copied, few_pairs, few_reference, beta=beta, lr=run.large, warmup_steps=2, progress=False)
            earned = implicit_rewards(pair_log_probs(copied, held_here), before, beta)  # beta is still in them
            return copied, earned.abs().mean().item(), win_share(earned[:, 0] - earned[:, 1])
    """,
}
