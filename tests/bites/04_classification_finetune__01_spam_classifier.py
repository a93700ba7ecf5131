"""What is broken in lesson 4.1, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("quotes are taken away", find='label, tab, message = line.partition("\\t")',
             replace='label, tab, message = line.replace(\'"\', "").partition("\\t")'),
    Mutation("duplicates in other letters stay", find="join(text.split()).casefold()", replace="join(text.split())"),
    Mutation("duplicates go after the split", find="train, val, test = split(deduplicate(messages))",
             replace="train, val, test = map(deduplicate, split(messages))"),
    Mutation("parts overlap", find="part += group[start:end]", replace="part += group[:end]"),
    Mutation("padding on the left", find="padding_value=pad_id)", replace='padding_value=pad_id, padding_side="left")'),
    Mutation("an empty message has no token", find="return ids or [tokenizer.encode_single_token(END_OF_TEXT)]",
             replace="return ids or [0]"),
    Mutation("batches are not sorted", find="sorted(order[start : start + group], key=self.lengths.__getitem__)",
             replace="order[start : start + group]"),
    Mutation("the last column is read", find="gpt.hidden(tokens)[rows, lengths - 1]",
             replace="gpt.hidden(tokens)[:, -1]"),
    Mutation("the first token is read", find="gpt.hidden(tokens)[rows, lengths - 1]",
             replace="gpt.hidden(tokens)[:, 0]"),
    Mutation("the last real token is one too early", find="[rows, lengths - 1]", replace="[rows, lengths - 2]"),
    Mutation("the answers come in the order of their lengths", find="probabilities[rows] = ",
             replace="probabilities[sorted(rows)] = "),
    Mutation("more than the head learns", find='"head": [classifier.head],',
             replace='"head": [classifier.gpt.final_norm, classifier.head],'),
    Mutation("precision and recall change places", find="tp / max(1, tp + fp), wilson(tp, tp + fp)",
             replace="tp / max(1, tp + fn), wilson(tp, tp + fn)"),
    Mutation("the threshold is not kept", find='"threshold": float(self.threshold)', replace='"threshold": 0.5',
             skip_to="folder = data.places"),
    Mutation("what was kept is read without its threshold", find="tokenizer, folder), labels, threshold)",
             replace="tokenizer, folder), labels)", skip_to="folder = data.places"),
    Mutation("predict has a threshold of its own", find=">= self.threshold, -1)", replace=">= 0.5, -1)",
             skip_to="p, r = 0.8, 0.2"),
    Mutation("the weights of the batch divide", find="return loss / len(labels)",
             replace="return loss / (len(labels) if weight is None else weight[labels].sum())"),
    Mutation("the weights forget how many labels there are", find="(n_labels * counts.float())",
             replace="counts.float()"),
    Mutation("the curve starts at the lenient end", find="scores.argsort(descending=True)", replace="scores.argsort()"),
    Mutation("equal scores are told apart", find="scores[order].diff() != 0", replace="scores[order].diff() <= 0"),
]

SMALLER = {
    "[:400])": "[:200])",
    "epochs=4, lr=2e-3": "epochs=1, lr=2e-3",
    "test_texts, test_labels = [": "test = test[::4]\ntest_texts, test_labels = [",
    "train_classifier(model, seen, val_balanced,": "train_classifier(model, seen[::12], val_balanced[::4],",
}
LEFT_OUT = [
    "random_heads = ", "wrong = [i for i", "command = [sys.executable", "inbox = [yours",
    "handed = finished.SpamClassifier",
]
WRONG_ANSWERS = {
    "near_duplicates": """
        def near_duplicates(train, test):
            known = {re.sub(r"\\d", "0", text).casefold() for _, text in train}  # a digit more is another text
            return sum(re.sub(r"\\d", "0", text).casefold() in known for _, text in test)
    """,
    "mislabel": """
        def mislabel(messages, share, seed=0):
            n, other = round(share * len(messages)), {"ham": "spam", "spam": "ham"}  # always the first ones
            return [(other[label] if i < n else label, text) for i, (label, text) in enumerate(messages)]
    """,
    "windows": """
        def windows(ids, size, stride):
            return [ids[i : i + size] for i in range(0, len(ids), stride)]  # goes on after the end was reached
    """,
}
