"""How lesson 2.2 can be broken, and what its exercises must refuse."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("drop the scale in the layer", find=" / k.shape[-1] ** 0.5", replace="",
             cell_contains="# -> shared/attention.py"),
    Mutation("drop the scale in the function", find=" / k.shape[-1] ** 0.5", replace="", cell_contains="def attend("),
    Mutation("softmax over the queries", find="scores.softmax(dim=-1)", replace="scores.softmax(dim=-2)",
             cell_contains="def attend_unscaled"),
    Mutation("keys made by the queries' matrix", find="self.key(x)", replace="self.query(x)",
             cell_contains="# -> shared/attention.py"),
    Mutation("hand over the key in place of the value", find="values = x @ W_value", replace="values = x @ W_key"),
    Mutation("each token answers for itself", find="digits.gather(1, where)", replace="digits"),
]

WRONG_ANSWERS = {
    "accuracy_by_width": """
def accuracy_by_width(widths):
    return {width: train("query, key", 0)[2] for width in widths}  # always the width of the lesson
""",
    "cross_attend": """
def cross_attend(layer, x, memory):
    return attend(layer.query(memory), layer.key(x), layer.value(x))  # the wrong text asks
""",
}
