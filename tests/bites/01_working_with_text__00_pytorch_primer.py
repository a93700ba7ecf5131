"""What is broken in lesson 1.0, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("a column minus a row, in silence", find="prediction.squeeze(1) - answer", replace="prediction - answer"),
    Mutation("a row is taken for a column", find="(left[i] * right[:, j]).sum()", replace="(left[i] * right[j]).sum()"),
    Mutation("gradients of a value used twice are not added", find="parent.grad += slope * value.grad",
             replace="parent.grad = slope * value.grad"),
    Mutation("gradients are handed on too early", find="for value in reversed(order):", replace="for value in order:"),
    Mutation("a wrong rule for tanh", find="(self,), (1 - t * t,)", replace="(self,), (1 - t,)"),
    Mutation("the maximum is not subtracted", find="(scores - scores.amax(dim=-1, keepdim=True)).exp()",
             replace="scores.exp()"),
    Mutation("the probability of another token", find="probs[torch.arange(len(targets)), targets]",
             replace="probs[torch.arange(len(targets)), targets - 1]"),
    Mutation("SGD climbs", find="w -= lr * w.grad", replace="w += lr * w.grad"),
    Mutation("AdamW without its correction of the start", find="m / (1 - betas[0] ** n), v / (1 - betas[1] ** n)",
             replace="m, v"),
    Mutation("Adam instead of AdamW", find="w = w * (1 - lr * weight_decay)", replace="w = w * 1.0"),
    Mutation("a net without tanh draws a line", find="self.second(self.first(x).tanh())",
             replace="self.second(self.first(x))"),
]

WRONG_ANSWERS = {
    "sigmoid": """
        def sigmoid(value):
            s = 1 / (1 + math.exp(-value.data))
            return Value(s, (value,), (s,))  # the slope of exp, not of the sigmoid
    """,
    "largest_rate": """
        def largest_rate(xs):
            return 1 / (2 * (xs * xs).mean().item())  # the rate that arrives in one step
    """,
    "safe_cross_entropy": """
        def safe_cross_entropy(logits, targets):
            probs = stable_softmax(logits) + 1e-9  # finite, and wrong
            return -probs[torch.arange(len(targets)), targets].log().mean()
    """,
}
