"""What is broken in lesson 3.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("ignored targets count", find="(targets != IGNORE).sum().clamp(min=1)", replace="targets.numel()",
             count=2),
    Mutation("the chunks are one", find="hidden.split(n_rows), targets.split(n_rows)", replace="[hidden], [targets]"),
    Mutation("a chunk is left out", find="for chunk in chunks])",
             replace="for chunk in list(chunks)[1:] or [(hidden, targets)]])"),
    Mutation("every batch weighs the same in the evaluation", find="total += loss_fn(model, *batch).item() * n",
             replace="total, n = total + loss_fn(model, *batch).item(), 1"),
    Mutation("norms and biases decay too", find="if p.dim() < 2], \"weight_decay\": 0.0}",
             replace="if p.dim() < 2], \"weight_decay\": weight_decay}"),
    Mutation("every batch of a step weighs the same", find="* (count / max(1, sum(counts)))",
             replace="* (1 / len(batches))"),
    Mutation("the gradients are not set to zero", find="        optimizer.zero_grad()\n        losses.append",
             replace="        losses.append"),
    Mutation("the resumed run starts its order anew", find="if step >= steps_done:",
             replace="if step >= steps_done - steps_done:"),
    Mutation("the optimizer is not restored",
             find='optimizer.load_state_dict({"state": values, "param_groups": groups})',
             replace="pass"),
    Mutation("the random state is not restored", find='torch.set_rng_state(tensors["random.cpu"])', replace="pass"),
    Mutation("nothing is learned by heart: the text is read once", find='settings = {"epochs": epochs,',
             replace='settings = {"epochs": 1,'),
]

SMALLER = {"True, 4, 420, 3e-3, 60,": "True, 4, 340, 3e-3, 60,"}
LEFT_OUT = ["recipes = {", "kinds = {", "def alikeness"]
WRONG_ANSWERS = {
    "bits_per_byte": """
        def bits_per_byte(loss, text, n_tokens):
            return loss * n_tokens / math.log(2) / len(text)  # characters, not bytes
    """,
    "adamw_step": """
        def adamw_step(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
            p = p * (1 - lr * weight_decay)
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            return p - lr * m / (v.sqrt() + eps), m, v  # the averages are too small at first
    """,
}
