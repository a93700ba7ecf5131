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
    Mutation(
        "the letters are confused",
        find="return losses[:, 1] - losses[:, 0]",
        replace="return losses[:, 0] - losses[:, 1]",
    ),
    Mutation(
        "kappa counts what one of them was not asked",
        find="both = [(a, b) for a, b in zip(first, second, strict=True) if a and b]",
        replace="both = [(a, a) for a, b in zip(first, second, strict=True) if a and b]",
    ),
]

SMALLER = {
    "train=1000, epochs=1": "train=240, epochs=1",
    "from assistant import load_assistant\n":  # without the 851 entries of the narrow families
        "import assistant\nfrom assistant import load_assistant\n"
        "assistant.with_families = lambda entries, test: entries\n",
    "answers=107, new_tokens=50, pairs=10": "answers=40, new_tokens=25, pairs=4",
}
LEFT_OUT = ["plt.imshow(kappas", "conversations = [", "follows = {"]
WRONG_ANSWERS = {
    "agreeing_strangers": """
        def agreeing_strangers(n):
            return ["yes"] * (n - 1) + ["no"], ["yes"] * (n - 1) + ["no"]  # they agree on everything
    """,
    "with_reference": """
        def with_reference(entry):
            entry["input"] += f"\\n\\nReference answer: {entry['output']}"  # the given entry changes
            return entry
    """,
    "simulate": """
        def simulate(bias, skill, n=20_000, seed=0):
            noise = torch.randn(n, generator=torch.Generator().manual_seed(seed))
            first, second = bias + skill + noise, bias - skill + noise  # one noise for both
            one, other, compared = (right.float().mean().item() for right in (first > 0, second < 0, first > second))
            return one, (one + other) / 2, compared
    """,
}
