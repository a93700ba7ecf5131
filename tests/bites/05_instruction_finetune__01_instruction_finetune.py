"""What is broken in lesson 5.1, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("duplicates stay", find="        if key in seen:\n", replace="        if key in seen and False:\n"),
    Mutation("a null input makes a row useless", find='if field == "input" and value is None:',
             replace='if field == "input" and value == 0:'),
    Mutation("the parts overlap", find="zip([0, *ends], ends, strict=False)",
             replace="zip([0, *(end - 1 for end in ends)], ends, strict=False)"),
    Mutation("the held-out prompts come last and so lose", find="check_entries(held_out + kept + alpaca",
             replace="check_entries(kept + held_out + alpaca"),
    Mutation("items of the test are trained on", find="alpaca + narrow_training)", replace="alpaca + narrow_test)"),
    Mutation("the last mark counts", find="text.partition(template.answer)[2]",
             replace="text.rpartition(template.answer)[2]"),
    Mutation("an answer has no end", find="[*answer, tokenizer.eot_token]", replace="answer"),
    Mutation("cutting is silent", find="                self.cut.append(i)\n", replace="                pass\n"),
    Mutation("answers are cut away", find="if room < min(min_answer, len(answer)):", replace="if room < -1000:"),
    Mutation("the mask is one token late", find="~is_answer[1:]", replace="~is_answer[:-1]"),
    Mutation("the filling counts", find="torch.full((len(batch), T), IGNORE)",
             replace="torch.full((len(batch), T), 0)"),
    Mutation("the head reads the places one later", find="model.hidden(inputs)[counts]",
             replace="model.hidden(inputs)[counts.roll(1, 1)]"),
    Mutation("a full row takes one more", find="for room in range(n, max_tokens + 1) if",
             replace="for room in range(n - 2, max_tokens + 1) if"),
    Mutation("the answers come back sorted by length", find="answers[i] = extract_response(template.answer",
             replace="answers[order.index(i)] = extract_response(template.answer"),
    Mutation("the file forgets the entries", find='entry | {"model_response": response}',
             replace='{"model_response": response}'),
]

SMALLER = {
    'data.places.data_dir() / f"{tokenizer.name}-assistant"': "Path(__import__('tempfile').mkdtemp())",
    "narrow_training, narrow_test = families.items()":
        "narrow_training, narrow_test = (whole[::6] for whole in families.items())",
    "new_tokens=50, threads=2": "new_tokens=12, threads=2",
    "train_loader = instruction_loader(train_data,":
        "train_loader = instruction_loader(InstructionData(training[-80:], tokenizer, C),",
    "val_data = InstructionData(validation, tokenizer": "val_data = InstructionData(validation[:24], tokenizer",
    "training[:96]": "training[:32]",
    "taught * 3": "taught",
}
LEFT_OUT = ["by_the_rule = ", "save_model(model, tokenizer, folder", "handed = finished.InstructionData"]
WRONG_ANSWERS = {
    "answer_mask": """
        def answer_mask(ids, mark):
            last = max((i + len(mark) for i in range(len(ids)) if ids[i : i + len(mark)] == mark), default=len(ids))
            return torch.arange(len(ids)) >= last  # after the last mark
    """,
    "loss_after_training": """
        def loss_after_training(mask_prompt):
            copied = copy.deepcopy(model)
            copied.load_state_dict(start)
            train(copied, instruction_loader(few, 8), loss_fn=answer_loss, lr=lr, warmup_steps=2, progress=False)
            return mean_loss(copied, val_loader, answer_loss)  # mask_prompt is forgotten
    """,
    "new_family": """
        def new_family():
            words = families.pairs("tall short long old young cold warm slow fast " * 4, lambda word: word + "er")
            made = families.of_words("comparative", "What is the comparative of '{}'?",
                                     "The comparative of 'WORD' is '{}'.", words, lambda word: word + "er")
            return made[:24], made[24:]  # the same words in both
    """,
}
