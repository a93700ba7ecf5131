"""What is broken in lesson 3.4, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the past is not kept", find="past[:] = k, v", replace="past[:] = k[:, :, :1], v[:, :, :1]"),
    Mutation("new tokens stand at position 0, in the plain version",
             find="positions = torch.arange(start, start + tokens.shape[1])",
             replace="positions = torch.arange(tokens.shape[1])"),
    Mutation("attention ignores the cache", find="k, v, mask = cache(k, v)", replace="_, _, mask = cache(k, v)"),
    Mutation("new tokens stand at position 0",
             find="torch.arange(T, device=tokens.device) if cache is None else cache.positions",
             replace="torch.arange(T, device=tokens.device)"),
    Mutation("a token does not see itself", find="device=query_positions.device) <= query_positions",
             replace="device=query_positions.device) < query_positions"),
    Mutation("no mask in the cache", find="self.mask = causal_mask(self.positions, self.end)[:, None]",
             replace="self.mask = None"),
    Mutation("all rows write where the first one does", find="torch.tensor(lengths, device=device)[:, None]",
             replace="torch.tensor(lengths[:1] * len(lengths), device=device)[:, None]"),
    Mutation("the logits of the padding", find="[len(ids) - 1 for ids in texts]",
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
]

SMALLER = {
    "assert greedy_with_past(prompt, 200) == greedy(prompt, 200)":
        "assert greedy_with_past(prompt, 60) == greedy(prompt, 60)",
    "positions_read(model, greedy, prompt, 200)": "positions_read(model, greedy, prompt, 60)",
    "(model, prompt, 200, use_cache=use_cache)": "(model, prompt, 40, use_cache=use_cache)",
}
LEFT_OUT = ["reads = positions_read", "lengths, milliseconds =", "for way, mark in", "source = torch.ones",
            "wide = GPTModel", "batches, bound, measured =", "plt.loglog", "handed = FinishedGPT"]

WRONG_ANSWERS = {
    "cache_bytes": """
        def cache_bytes(config, n_rows, n_tokens, bytes_per_number):
            return config.n_layers * n_rows * n_tokens * config.emb_dim * bytes_per_number  # the keys only
    """,
    "take_back": """
        def take_back(cache, row, n):
            cache.tokens[row] = cache.tokens[row][:-n]  # forgets everything for n = 0
            return cache.tokens[row]
    """,
    "round_to_bits": """
        def round_to_bits(x, bits):
            most, steps = x.abs().max(), 2 ** (bits - 1) - 1  # one scale for all vectors
            return (x / most * steps).round() / steps * most
    """,
}
