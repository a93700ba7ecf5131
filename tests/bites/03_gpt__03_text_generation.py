"""What is broken in lesson 3.3, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the least likely token", find="next_logits(window).argmax().item()",
             replace="next_logits(window).argmin().item()"),
    Mutation("pairs are counted, not fours", find="zip(ids, ids[1:], ids[2:], ids[3:], strict=False)",
             replace="zip(ids, ids[1:], strict=False)"),
    Mutation("top-k compares with the largest", find="dim=-1).values[:, -1:]", replace="dim=-1).values[:, :1]"),
    Mutation("top-p drops the token that crosses the line", find="before = probs.cumsum(dim=-1) - probs",
             replace="before = probs.cumsum(dim=-1)"),
    Mutation("min-p compares with the sum", find="p * probs.amax(dim=-1, keepdim=True)", replace="p"),
    Mutation("negative logits are divided too", find="row[seen] / penalty, row[seen] * penalty",
             replace="row[seen] / penalty, row[seen] / penalty"),
    Mutation("temperature the wrong way round", find="settings.repetition_penalty).float() / settings.temperature",
             replace="settings.repetition_penalty).float() * settings.temperature"),
    Mutation("all rows get the last row's settings", find="rows = [i for i, s in enumerate(settings) if s == choice]",
             replace="rows = list(range(len(settings)))"),
    Mutation("the stream hides its text from the penalty", find="ids += sample(row, [ids], [setting])",
             replace="ids += sample(row, [[]], [setting])"),
    Mutation("each token decoded alone", find="yield decoder.decode(tokenizer.decode_single_token_bytes(token))",
             replace="yield tokenizer.decode([token])"),
]

SMALLER = {"temperatures=(0.3, 0.6, 0.9, 1.2)": "temperatures=(0.3, 1.2)"}

LEFT_OUT = ["measured = {name: both_numbers", "axis.errorbar(log_p", "from shared import sampling as finished"]

WRONG_ANSWERS = {
    "keep_above": """
        def keep_above(logits, epsilon):
            return logits.masked_fill(logits.softmax(dim=-1) < epsilon, float("-inf"))  # may drop every token
    """,
    "distinct": """
        def distinct(rows, n):
            ids = [token for row in rows for token in row]  # groups run from one row into the next
            groups = list(zip(*(ids[i:] for i in range(n))))
            return len(set(groups)) / len(groups)
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
