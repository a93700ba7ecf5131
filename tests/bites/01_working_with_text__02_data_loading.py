"""What is broken in lesson 1.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation(
        "targets are not shifted",
        find="return self.ids[start:end], self.ids[start + 1 : end + 1]",
        replace="return self.ids[start:end], self.ids[start:end]",
    ),
    Mutation(
        "the last window is not counted",
        find="return (len(self.ids) - 1 - self.context_length) // self.stride + 1",
        replace="return (len(self.ids) - 1 - self.context_length) // self.stride",
    ),
    Mutation("the stride is ignored", find="start = i * self.stride", replace="start = i"),
    Mutation("a text without a last target is let through", find="if len(self.ids) <= context_length:",
             replace="if len(self.ids) < context_length:"),
    Mutation("the seed is not used", find="drop_last=drop_last, generator=generator)", replace="drop_last=drop_last)"),
    Mutation("the short batch is always kept", find="shuffle=shuffle, drop_last=drop_last,",
             replace="shuffle=shuffle, drop_last=False,"),
    Mutation("positions are forgotten", find="return self.token_embedding(tokens) + self.position_embedding(positions)",
             replace="return self.token_embedding(tokens)"),
]

WRONG_ANSWERS = {
    "windows_with_tail": """
        def windows_with_tail(ids, context_length):
            pairs = list(TokenDataset(ids, context_length))
            if (len(ids) - 1) % context_length:
                start = len(ids) - context_length  # forgets that the targets need one token more
                pairs.append((ids[start:], ids[start + 1 :]))
            return pairs
    """,
    "sinusoidal_positions": """
        def sinusoidal_positions(n_positions, emb_dim):
            frequencies = 10000 ** (-torch.arange(emb_dim // 2) / emb_dim)  # i instead of 2i
            angles = torch.arange(n_positions)[:, None] * frequencies
            table = torch.empty(n_positions, emb_dim)
            table[:, 0::2], table[:, 1::2] = angles.sin(), angles.cos()
            return table
    """,
}
