"""What is broken in lesson 5.2b, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
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
        "the vote goes to the other side",
        find='pair["who"][choice == "right"]',
        replace='pair["who"][choice == "left"]',
    ),
]

SMALLER = {
    "train=1000, epochs=1": "train=240, epochs=1",
    "answers=100, new_tokens=50": "answers=40, new_tokens=25",
}
LEFT_OUT = ["conversations = [", "counts = [int(", "def cell_of"]
WRONG_ANSWERS = {}
