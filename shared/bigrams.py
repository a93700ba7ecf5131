"""The first language model: how often each token came after each other one. What a trained model has to beat.

Let c(a, b) be how often b came after a, c(a) the sum of these counts, k(a) the number of different b. Every count gives
0.75 of itself away, and the tokens share that out as they are frequent, so that no pair has the probability 0:

    P(b | a) = (max(c(a, b) - 0.75, 0) + 0.75 k(a) P(b)) / c(a)

P(b) is the same formula one level down: plain counts, and 1 / V where P(b) stands. This is absolute discounting (Ney,
Essen and Kneser 1994; interpolated, and with 0.75, in Jurafsky and Martin, draft of December 2020, chapter 3).
Shapes: N pairs, V vocabulary. Only pairs that occur are stored; there is no table of V x V.
"""

import torch


def discounted(count, kinds, total, lower, discount=0.75):
    """The formula above; `lower`, the probabilities one level down, where nothing was counted (total is 0)."""
    probs = ((count - discount).clamp(min=0) + discount * kinds * lower) / total.clamp(min=1)
    return torch.where(total > 0, probs, lower)


class Bigrams:
    """P(next token | token), counted in `ids`. Raises ValueError for fewer than two ids, or one not below V."""

    def __init__(self, ids, vocab_size):
        ids = check_ids(ids, vocab_size)
        self.pairs, self.counts = (ids[:-1] * vocab_size + ids[1:]).unique(return_counts=True)  # a pair as one number
        self.totals = torch.bincount(ids[:-1], minlength=vocab_size)  # [V]
        self.kinds = torch.bincount(self.pairs // vocab_size, minlength=vocab_size)  # [V]
        single = torch.bincount(ids, minlength=vocab_size)
        uniform = torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
        self.unigram = discounted(single, (single > 0).sum(), single.sum(), uniform)  # [V]

    def probs(self, first, second):
        """P(second | first) of ids that broadcast: [N], [N] -> [N]; one token and all ids: its row [V]. In float64."""
        if (first < 0).any() or (second < 0).any():  # Python would count them from the end
            raise ValueError("a token id is below 0")
        pair = first * len(self.unigram) + second
        at = torch.searchsorted(self.pairs, pair).clamp(max=len(self.pairs) - 1)
        count = torch.where(self.pairs[at] == pair, self.counts[at], 0)
        return discounted(count, self.kinds[first], self.totals[first], self.unigram[second])

    def generate(self, token, n, generator=None):
        """`n` ids after `token`, each drawn from the row of the one before."""
        ids, everything = [token], torch.arange(len(self.unigram))
        for _ in range(n):
            row = self.probs(torch.tensor(ids[-1]), everything)  # [V]
            ids.append(torch.multinomial(row, 1, generator=generator).item())
        return ids[1:]


def check_ids(ids, vocab_size):
    """`ids` as a tensor [N]. Raises ValueError for another shape, fewer than two, one outside 0 ... vocab_size - 1."""
    ids = torch.as_tensor(ids, dtype=torch.long, device="cpu")
    if ids.dim() != 1 or len(ids) < 2:
        raise ValueError(f"there are {' x '.join(map(str, ids.shape))} token ids; a pair needs two in a row")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"ids from {ids.min()} to {ids.max()}; vocab_size {vocab_size} allows 0 to {vocab_size - 1}")
    return ids


def bigram_loss(train_ids, valid_ids, vocab_size):
    """Mean loss in nats per token of `valid_ids`, all but the first, under the bigrams of `train_ids`: a float."""
    ids = check_ids(valid_ids, vocab_size)
    return -Bigrams(train_ids, vocab_size).probs(ids[:-1], ids[1:]).log().mean().item()
