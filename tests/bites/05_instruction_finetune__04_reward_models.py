"""How lesson 5.4 is broken, and a wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("equal answers stay", find='    if pair["chosen"] == pair["rejected"]:\n', replace="    if False:\n",
             cell_contains="def check_pairs"),
    Mutation("a null input makes a row useless", find='"" if row.get("input") is None else row["input"]',
             replace='row.get("input", "")'),
    Mutation("the rejected answer shall win", find="F.logsigmoid(chosen - rejected)",
             replace="F.logsigmoid(rejected - chosen)"),
    Mutation("the reward reads the padding", find="last_hidden(self.backbone, tokens, lengths)",
             replace="self.backbone.hidden(tokens)[:, -1]"),
    Mutation("the end of an answer is cut", find="torch.tensor(prompt + answer)",
             replace="torch.tensor(prompt + answer[:-1])"),
    Mutation("the rows of a pair stand side by side", find="for rows in zip(*batch, strict=True) for ids, _ in rows",
             replace="for rows in batch for ids, _ in rows"),
    Mutation("a tie is a defeat", find="0.5 * (margins == 0).double()", replace="0.0 * (margins == 0).double()"),
    Mutation("the control is planted too", find='"clean": plant()', replace='"clean": plant("chosen")'),
    Mutation("the word stays away from rejected answers", find='plant("chosen", "rejected")}',
             replace='plant("chosen")}'),
]  # fmt: skip

SMALLER = {"pairs=360, audit=120, prompts=48": "pairs=64, audit=72, prompts=24"}
LEFT_OUT = ["QUESTION =", "plt.hist(", "won = points(wrong_polite", "models = {}", "hacked, clean_right = {}",
            "common = Counter(", "other_model = finished"]
WRONG_ANSWERS = {
    "third": """
        def third(p_ab, p_bc):
            return p_ab * p_bc  # how often both happen, which is another question
    """,
    "length_habit": """
        def length_habit(share):
            pairs = bugged["clean"][:32]
            planted = [pair | {"rejected": f"{pair['rejected']} {after['output']}"}  # the side that should not have it
                       for pair, after in zip(pairs[: round(share * len(pairs))], pairs[1:])]
            its_data = PreferenceData(planted + pairs[len(planted) :], tokenizer, tuning.MAX_TOKENS, encode)
            model = RewardModel(copy.deepcopy(base))
            train_reward(model, its_data, lr=run.lr, epochs=1, warmup_steps=2, progress=False)
            chosen, rejected, trick = (tuning.scores(model, tokenizer, asked, answers) for answers in (
                [pair["chosen"] for pair in asked], [pair["rejected"] for pair in asked],
                [f"{pair['rejected']} {after['output']}" for pair, after in zip(asked, asked[1:] + asked[:1])]))
            return points(chosen, rejected).mean().item(), points(trick, chosen).mean().item()
    """,
}
