"""What is broken in lesson 3.3, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("top-p drops the token that crosses the line", find="before = probs.cumsum(dim=-1) - probs",
             replace="before = probs.cumsum(dim=-1)"),
    Mutation("min-p compares with the sum", find="p * probs.amax(dim=-1, keepdim=True)", replace="p"),
    Mutation("negative logits are divided too", find="row[seen] / penalty, row[seen] * penalty",
             replace="row[seen] / penalty, row[seen] / penalty"),
    Mutation("temperature the wrong way round", find="logits.float() / settings.temperature",
             replace="logits.float() * settings.temperature"),
    Mutation("all rows get the last row's settings", find="rows = [i for i, s in enumerate(settings) if s == choice]",
             replace="rows = list(range(len(settings)))"),
    Mutation("attention ignores the cache", find="k, v, mask = cache(k, v)", replace="_, _, mask = cache(k, v)"),
    Mutation("new tokens stand at position 0",
             find="torch.arange(T, device=tokens.device) if cache is None else cache.positions",
             replace="torch.arange(T, device=tokens.device)"),
    Mutation("no mask for rows of unequal length", find="self.mask = causal_mask(self.positions, self.end)[:, None]",
             replace="self.mask = None"),
    Mutation("the logits of the filling", find="[len(ids) - 1 for ids in texts]",
             replace="[longest - 1 for ids in texts]"),
    Mutation("older tokens are forgotten", find="cache.tokens[row].append(token)",
             replace="cache.tokens[row] = [token]"),
    Mutation("a full row does not read its newer half anew", find="prefill(model, cache, full, kept)", replace="pass"),
    Mutation("a full row keeps its older half", find="cache.tokens[row][window_start(cache.size + 1, cache.size) :]",
             replace="cache.tokens[row][: cache.size // 2]"),
    Mutation("a freed row keeps its text", find="self.tokens[row] = []", replace="pass"),
    Mutation("the window moves by one token", find="half = max(1, context_length // 2)", replace="half = 1"),
    Mutation("a row goes on after its end", find="eos_id if done[i] else token", replace="token"),
    Mutation("prompts padded on the right", find="[pad_id] * (longest - len(row)) + row",
             replace="row + [pad_id] * (longest - len(row))"),
    Mutation("each token decoded alone", find="yield decoder.decode(tokenizer.decode_single_token_bytes(token))",
             replace="yield tokenizer.decode([token])"),
]

LEFT_OUT = ["lengths, seconds =", 'seconds["uncached"]], "k--s"', "handed = FinishedGPT"]

WRONG_ANSWERS = {
    "keep_above": """
        def keep_above(logits, epsilon):
            return logits.masked_fill(logits.softmax(dim=-1) < epsilon, float("-inf"))  # may drop every token
    """,
    "stop_at": """
        def stop_at(pieces, stop):
            for piece in pieces:  # does not see a stop that is spread over two pieces
                if stop in piece:
                    yield piece[: piece.index(stop)]
                    return
                yield piece
    """,
}
