"""What must not go unnoticed in lesson 2.1."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("softmax does not subtract the largest score", find="scores - scores.max(dim=-1, keepdim=True).values",
             replace="scores"),
    Mutation("the sum forgets the weights", find="context += weights[j] * x[j]", replace="context += x[j]"),
    Mutation("weights used column by column", find="return softmax(scores) @ x",
             replace="return softmax(scores).transpose(-2, -1) @ x", cell_contains="def attend(x)"),
    Mutation("keys come from the next text of the batch", find="scores = x @ x.transpose(-2, -1)",
             replace="scores = x @ x.roll(1, 0).transpose(-2, -1)"),
    Mutation("no position vectors", find="attend(x + position)[1], attend(swapped + position)[5]",
             replace="attend(x)[1], attend(swapped)[5]"),
    Mutation("token vectors of unequal length", find="2 * counts / counts.norm(dim=-1, keepdim=True)",
             replace="counts"),
    Mutation("no matrix between query and key", find="x @ M @ x.T", replace="x @ x.T"),
]

WRONG_ANSWERS = {
    "layers_until_equal": """
    def layers_until_equal(x, factor):
        h = factor * x  # scales the vectors once, not the scores of every layer
        for layer in range(1000):
            if (h.max(dim=0).values - h.min(dim=0).values).max() < 0.1:
                return layer
            h = attend(h)
        return 1000
    """,
    "attend_ignoring": """
    def attend_ignoring(x, keep):
        return softmax(x @ x.T) * keep @ x  # the rows no longer sum to 1
    """,
    "streaming_context": """
    def streaming_context(query, vectors):
        total, context = 0.0, torch.zeros_like(query)
        for vector in vectors:
            power = (query @ vector).exp()  # overflows
            total, context = total + power, context + power * vector
        return context / total
    """,
}
