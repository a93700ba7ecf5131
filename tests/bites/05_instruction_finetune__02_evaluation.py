"""What is broken in lesson 5.2, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation(
        "the prompt counts too",
        find="token_losses(model, before + ids, stride)[-len(ids) :].sum().item()",
        replace="token_losses(model, before + ids, stride).sum().item()",
    ),
    Mutation(
        "a choice is not divided by its bytes",
        find='"byte": [len(valid_unicode(choice).encode("utf-8")) + 1 for choice in item["choices"]]}',
        replace='"byte": [1 for choice in item["choices"]]}',
    ),
    Mutation(
        "the least likely choice wins",
        find='right[rule].append(values.index(min(values)) == item["gold"])',
        replace='right[rule].append(values.index(max(values)) == item["gold"])',
    ),
    Mutation("the choices forget the question", find="[query] * n", replace="[query[:-1]] * n"),
    Mutation("the bad sentence is preferred", find="((good < bad)[group]", replace="((good > bad)[group]"),
    Mutation("a last word is its first token", find="sums.append([losses.sum(),", replace="sums.append([losses[0],"),
    Mutation("solved questions that do not fit", find="if n == 0 or room is None or", replace="if n < 9 or"),
    Mutation(
        "repetition is diversity", find="return 1 - different if different else 0.0", replace="return different"
    ),
    Mutation(
        "the models change places",
        find="both = torch.cat([one.sums, two.sums], dim=1)",
        replace="both = torch.cat([two.sums, one.sums], dim=1)",
    ),
]

SMALLER = {
    "looked_at = arc[:24]": "looked_at = arc[:16]",
    "train=1000, epochs=1": "train=48, epochs=1",
    "from assistant import load_assistant\n":  # without the 851 entries of the narrow families
        "import assistant\nfrom assistant import load_assistant\n"
        "assistant.with_families = lambda entries, test: entries\n",
    "answers=100, new_tokens=50, mmlu=96, items=30": "answers=24, new_tokens=16, mmlu=12, items=12",
}
LEFT_OUT = [
    "def some(", "terms = sorted(", "def key_of", "told = {", "def cell_of", "finished = evaluation.perplexity",
]
WRONG_ANSWERS = {
    "rotations": """
        def rotations(record):
            choices = record["choices"]
            return [record | {"choices": choices[4 - k :] + choices[: 4 - k]} for k in range(4)]  # gold stays behind
    """,
    "most_raised": """
        def most_raised(model, tokenizer, item):
            choices = [tokenizer.encode_ordinary(" " + choice) for choice in item["choices"]]
            query = [tokenizer.eot_token, *tokenizer.encode_ordinary(item["query"])]
            losses = [loss.sum().item() for loss in score_choices(model, query, choices)]
            return losses.index(min(losses))  # likely after the question, or likely anyway
    """,
    "bits_from_question": """
        def bits_from_question(model, pairs):
            prompts, said = zip(*pairs)
            others = list(zip(prompts[1:] + prompts[:1], said))
            own, other = (perplexity(model, tokenizer, its) for its in (pairs, others))
            both = torch.cat([own.sums, other.sums], dim=1)  # the wrong way round
            return bits_gained(both), bootstrap(both, bits_gained)
    """,
}
