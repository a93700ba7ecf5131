"""What must not survive in the lesson on causal attention."""

from tests.bites import Mutation

CLASS = "class CausalAttention"
MUTATIONS = [
    Mutation("drop the mask", find='scores = scores.masked_fill(self.future[:T, :T], float("-inf"))', replace="pass"),
    Mutation("one step of the future stays open", find="dtype=torch.bool).triu(diagonal=1)",
             replace="dtype=torch.bool).triu(diagonal=2)", cell_contains=CLASS),
    Mutation("a token may not look at itself", find="dtype=torch.bool).triu(diagonal=1)",
             replace="dtype=torch.bool).triu(diagonal=0)", cell_contains=CLASS),
    Mutation("drop the scale", find=" / k.shape[-1] ** 0.5", replace="", cell_contains=CLASS),
    Mutation("drop the dropout", find="self.dropout(scores.softmax(dim=-1))", replace="scores.softmax(dim=-1)"),
    Mutation("way 1 does not renormalise", find="weights / weights.sum(dim=-1, keepdim=True)", replace="weights"),
    Mutation("the mask is saved with the weights", find='self.register_buffer("future", future, persistent=False)',
             replace='self.register_buffer("future", future)'),
    Mutation("no check of the length", find="if T > len(self.future):", replace="if False:"),
    Mutation("targets not shifted", find="return rolls[:, :-1], rolls[:, 1:]",
             replace="return rolls[:, :-1], rolls[:, :-1]", cell_contains="def roll_dice"),
]
WRONG_ANSWERS = {
    "sliding_window_mask": """
        def sliding_window_mask(T, window):
            ones = torch.ones(T, T, dtype=torch.bool)
            return ones.triu(diagonal=1) | ones.tril(diagonal=-window - 1)  # one token too many
    """,
    "loss_with_window": """
        def loss_with_window(window, seed):
            seed_everything(seed)
            model = TinyModel(len(letters), span, CausalAttention(32, 32, span))  # looks at everything before it
            train(model, windows(ids[:cut]), steps=200)
            return loss_by_position(model, windows(ids[cut:])(1000)).mean().item()
    """,
    "first_leak": """
        def first_leak(layer, x):
            table = influence(layer, x)
            for t in range(len(x) - 1):
                if table[t, t + 1] > 0:  # looks one step ahead only
                    return t, t + 1
    """,
}
