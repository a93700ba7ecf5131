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
    Mutation("pairs are counted backwards", find="(ids[:-1] * vocab_size + ids[1:])",
             replace="(ids[1:] * vocab_size + ids[:-1])"),
    Mutation("what was given away is not shared out in full", find="discount * kinds * lower",
             replace="discount * lower"),
    Mutation("a new pair gets the count of its neighbour",
             find="torch.where(self.pairs[at] == pair, self.counts[at], 0)", replace="self.counts[at]"),
    Mutation("the loss of copying", find="probs(ids[:-1], ids[1:])", replace="probs(ids[1:], ids[1:])"),
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
    "trigram_loss": """
        def trigram_loss(train_ids, valid_ids, vocab_size):
            asked = list(zip(valid_ids, valid_ids[1:], valid_ids[2:]))
            triples = Counter(zip(train_ids, train_ids[1:], train_ids[2:]))
            pairs = Counter(zip(train_ids, train_ids[1:]))
            count = torch.tensor([triples[triple] for triple in asked])
            total = torch.tensor([pairs[a, b] for a, b, _ in asked])
            third = torch.tensor(valid_ids[2:])
            lower = Bigrams(train_ids, vocab_size).unigram[third]  # skips a level
            return -discounted(count, total, total, lower).log().mean().item()
    """,
}
