"""What is broken in lesson 5.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation(
        "the prompt counts too",
        find="token_losses(model, before + ids, stride)[-len(ids) :].sum().item()",
        replace="token_losses(model, before + ids, stride).sum().item()",
    ),
    Mutation(
        "a choice is not divided by its bytes",
        find='"byte": sizes.__getitem__}[by]',
        replace='"byte": lambda p: 1}[by]',
    ),
    Mutation(
        "the least likely choice wins",
        find='right.append(values.index(min(values)) == item["gold"])',
        replace='right.append(values.index(max(values)) == item["gold"])',
    ),
    Mutation("solved questions that do not fit", find="if n == 0 or room is None or", replace="if n < 9 or"),
    Mutation(
        "the places are not exchanged",
        find="for first, second in ((a, b), (b, a)):",
        replace="for first, second in ((a, b), (a, b)):",
    ),
    Mutation("the cache forgets who judged", find='f"{self.name}\\n{prompt}".encode()', replace="prompt.encode()"),
    Mutation(
        "a seven is a score", find="if number in (1, 2, 3, 4, 5) else None", replace="if number == number else None"
    ),
    Mutation("ties count nothing", find="0.5 + 0.5 * ((a > b) - (a < b))", replace="1.0 * (a > b)"),
    Mutation(
        "chance is not taken out", find="(observed - expected) / (1 - expected)", replace="observed / (1 - expected)"
    ),
    Mutation(
        "words count once", find="2 * shared / (a.total() + b.total())", replace="shared / (a.total() + b.total())"
    ),
    Mutation(
        "repetition is diversity", find="return 1 - different if different else 0.0", replace="return different"
    ),
    Mutation(
        "the vote goes to the other side",
        find='pair["who"][choice == "right"]',
        replace='pair["who"][choice == "left"]',
    ),
]

SMALLER = {
    "train=640": "train=240",
    "answers=100, new_tokens=40, mmlu=96, items=60": "answers=40, new_tokens=25, mmlu=24, items=24",
}
LEFT_OUT = [
    "benchmarks = {", "conversations = [", "counts = [int(", "def key_of", "told = {", "def cell_of",
    "finished = evaluation.perplexity",
]
WRONG_ANSWERS = {
    "rotations": """
        def rotations(record):
            choices = record["choices"]
            return [record | {"choices": choices[4 - k :] + choices[: 4 - k]} for k in range(4)]  # gold stays behind
    """,
    "items_needed": """
        def items_needed(difference, p=0.25):
            return math.ceil((1.96 / difference) ** 2)  # as if p(1 - p) were 1
    """,
}
