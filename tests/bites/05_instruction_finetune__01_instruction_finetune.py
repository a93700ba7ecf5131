"""What is broken in lesson 5.1, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("duplicates stay", find="        if key in seen:\n", replace="        if key in seen and False:\n"),
    Mutation("a null input makes a row useless", find='if field == "input" and value is None:',
             replace='if field == "input" and value == 0:'),
    Mutation("the parts overlap", find="zip([0, *ends], ends, strict=False)",
             replace="zip([0, *(end - 1 for end in ends)], ends, strict=False)"),
    Mutation("the held-out prompts come last and so lose", find="check_entries(held_out + training + alpaca",
             replace="check_entries(training + held_out + alpaca"),
    Mutation("the last mark counts", find="text.partition(template.answer)[2]",
             replace="text.rpartition(template.answer)[2]"),
    Mutation("an answer has no end", find="[*answer, tokenizer.eot_token]", replace="answer"),
    Mutation("cutting is silent", find="                self.cut.append(i)\n", replace="                pass\n"),
    Mutation("answers are cut away", find="if room < min(min_answer, len(answer)):", replace="if room < -1000:"),
    Mutation("the mask is one token late", find="~is_answer[1:]", replace="~is_answer[:-1]"),
    Mutation("the filling counts", find="torch.full((len(batch), T), IGNORE)",
             replace="torch.full((len(batch), T), 0)"),
    Mutation("a full row takes one more", find="for room in range(n, max_tokens + 1) if",
             replace="for room in range(n - 2, max_tokens + 1) if"),
    Mutation("the answers come back sorted by length", find="answers[i] = extract_response(template.answer",
             replace="answers[order.index(i)] = extract_response(template.answer"),
    Mutation("the file forgets the entries", find='entry | {"model_response": response}',
             replace='{"model_response": response}'),
]

SMALLER = {
    'data.places.data_dir() / f"{tokenizer.name}-assistant"': "Path(__import__('tempfile').mkdtemp())",
    "few, 4), epochs=15,": "few, 4), epochs=2,",
    "for _ in range(3):\n    seconds": "for _ in range(1):\n    seconds",
    "sorted(ratios)[1]": "ratios[0]",
    "rates=(5e-5, 1e-3)": "rates=(1e-3,)",
    "batch_sizes=(4, 16), search_entries=32, new_tokens=50": "batch_sizes=(4,), search_entries=32, new_tokens=20",
    "packed_loss = short_run(few_rows, rows_per_step, best_lr)": "packed_loss = math.nan",
    "train_loader = instruction_loader(train_data,":
        "train_loader = instruction_loader(InstructionData(training[:144], tokenizer, C),",
}
LEFT_OUT = [
    "def positions_per_second", "packed_val = ", "save_model(model, tokenizer, folder",
    "needed = (",
    "handed = finished.InstructionData",
]
WRONG_ANSWERS = {
    "answer_mask": """
        def answer_mask(ids, mark):
            last = max((i + len(mark) for i in range(len(ids)) if ids[i : i + len(mark)] == mark), default=len(ids))
            return torch.arange(len(ids)) >= last  # after the last mark
    """,
    "loss_per_entry": """
        def loss_per_entry(logits, targets):
            return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE)  # the mean over tokens
    """,
    "packed_mask": """
        def packed_mask(lengths):
            return torch.ones(sum(lengths), sum(lengths)).tril().bool()  # causal only
    """,
}
