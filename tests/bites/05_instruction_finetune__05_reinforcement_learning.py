"""What is broken in lesson 5.5, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the gradient of p, not of ln p", find="(F.one_hot(draws, 3) - p)", replace="F.one_hot(draws, 3)"),
    Mutation("the later surprises are not discounted", find="gamma * lam * later", replace="gamma * later"),
    Mutation(
        "the last value is expected to go on",
        find="torch.zeros_like(values[..., :1])",
        replace="values[..., -1:]",
    ),
    Mutation(
        "the clip takes the larger one",
        find="return torch.minimum(ratio * advantages",
        replace="return torch.maximum(ratio * advantages",
    ),
    Mutation("the ratio upside down", find="ratio = (new - old).exp()", replace="ratio = (old - new).exp()"),
    Mutation("the plain log-ratio", find="return log_r.exp() - 1 - log_r", replace="return -log_r"),
    Mutation(
        "no baseline in the group",
        find="centred = rewards - rewards.mean(dim=1, keepdim=True)",
        replace="centred = rewards - rewards.mean()",
    ),
    Mutation(
        "the spread over all groups",
        find="centred / (rewards.std(dim=1, keepdim=True) + TINY)",
        replace="centred / (rewards.std() + TINY)",
    ),
    Mutation("padding counts", find="return (loss * mask).sum(dim=1)", replace="return loss.sum(dim=1)"),
    Mutation(
        "KL is a bonus",
        find="loss = beta * kl_estimate(new, reference) - ",
        replace="loss = -beta * kl_estimate(new, reference) - ",
    ),
    Mutation(
        "each token is asked about itself",
        find="drawn = log_probs.gather(1, tokens[:, 1:][mask][:, None])[:, 0]",
        replace="drawn = log_probs.gather(1, tokens[:, :-1][mask][:, None])[:, 0]",
    ),
    Mutation(
        "the step of ten lines makes worse answers likelier",
        find="policy_loss(new, drawn.log_probs, drawn.log_probs, better, drawn.mask)",
        replace="policy_loss(new, drawn.log_probs, drawn.log_probs, -better, drawn.mask)",
    ),
    Mutation(
        "another temperature than the one of the draws, by a little",
        find=".float().log_softmax(dim=-1)  # [M, V]",
        replace=".float().div(1.002).log_softmax(dim=-1)  # [M, V]",
    ),
    Mutation(
        "the mask begins one token late",
        find="row[len(before) - 1 : len(before) - 1 + len(new)] = True",
        replace="row[len(before) : len(before) + len(new)] = True",
    ),
    Mutation("pieces are weighed by themselves", find="**settings).sum() / len(samples.tokens)",
             replace="**settings).mean()"),
    Mutation(
        "worse answers become likelier",
        find="advantages(rewards).flatten().to(device)",
        replace="-advantages(rewards).flatten().to(device)",
    ),
    Mutation(
        "a dot is paid again",
        find='good = answer.endswith(".") and 3 <= len(words) <= 8',
        replace='good = answer.endswith(".") and len(words) <= 8',
    ),
]

SMALLER = {"steps=14, n_prompts=6": "steps=6, n_prompts=4"}
LEFT_OUT = ["ends = {name: learn(", 'plot_runs(["dots", "dots, length"']
WRONG_ANSWERS = {
    "gradients": """
        def gradients(draws, rewards):  # with the mean of all, the answer's own reward included
            S, P, G = draws.shape
            better = advantages_of_groups(rewards.view(S * P, G), scale=False)
            return reinforce(p, draws.flatten(), better.flatten()).view(S, P * G, 3).mean(dim=1)
    """,
    "various": """
        def various(prompts, answers):
            seen = set()  # pays only the first of equal answers
            return [0.0 if a in seen or seen.add(a) else x for x, a in zip(ends_soon(prompts, answers), answers)]
    """,
}
