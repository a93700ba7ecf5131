"""Classification: labelled texts, a head on the last real token, training, and a classifier to keep.

    classifier = SpamClassifier(gpt, tokenizer)                        # gpt, tokenizer = load_base()
    train_classifier(classifier, train_messages, validation_messages)
    labels, probabilities = classifier.predict(["WIN a prize now", "see you at 8"])
    classifier.save("spam_model")                              # AutoModelForSequenceClassification loads it

A message is a pair (label, text). Shapes: B messages, T tokens, D width, L labels, N messages in all.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from shared import training
from shared.batches import LengthBuckets, as_list, pad
from shared.checkpoints import load_model, open_folder, save_model
from shared.runtime import evaluating
from shared.tokenizer import END_OF_TEXT, with_end_of_text
from shared.weights import architecture_of, find_tensors

LABELS = ("ham", "spam")  # the number of a label is its place here; the last one is what is looked for


def parse_messages(text, labels=LABELS):
    """Lines `label<TAB>text` -> a list of (label, text). Blank lines are skipped; quotes are plain characters.

    Raises ValueError, naming the line, for one without a tab or with an unknown label, and for a text without any.
    """
    messages = []
    for number, line in enumerate(text.lstrip("\ufeff").split("\n"), 1):  # not splitlines: it also cuts at U+0085
        line = line.rstrip("\r")
        if not line.strip():
            continue
        label, tab, message = line.partition("\t")
        if not tab:
            comma = " (a comma stands there: is it a CSV file?)" if "," in line[:20] else ""
            raise ValueError(f"line {number} has no tab between label and text{comma}: {line[:60]!r}")
        if label not in labels:
            raise ValueError(f"line {number}: the label is {label[:20]!r}; it must be one of {', '.join(labels)}")
        messages.append((label, message))
    if not messages:
        raise ValueError("there is no message: the text is empty")
    return messages


def deduplicate(messages):
    """The messages without those whose text, letter case and spacing aside, stood before."""
    kept = {}
    for label, text in messages:
        kept.setdefault(" ".join(text.split()).casefold(), (label, text))
    return list(kept.values())


def split(messages, shares=(0.7, 0.1, 0.2), seed=0, labels=LABELS):
    """Shuffled parts of `messages`, of these shares, with the same mix of labels in each ("stratified").

    Raises ValueError where a part would have no message of one of the `labels`.
    """
    generator, parts = torch.Generator().manual_seed(seed), [[] for _ in shares]
    for label in dict.fromkeys([*(label for label, _ in messages), *labels]):
        group = [message for message in messages if message[0] == label]
        group = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
        ends = [round(len(group) * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
        for part, start, end in zip(parts, [0, *ends], ends, strict=False):
            if start == end:
                raise ValueError(f"there are {len(group)} messages of {label!r}: too few for parts of {shares}")
            part += group[start:end]
    return [[part[i] for i in torch.randperm(len(part), generator=generator).tolist()] for part in parts]


def balance(messages, seed=0):
    """As many messages of each label as there are of the rarest, drawn at random, in their old order."""
    generator, kept = torch.Generator().manual_seed(seed), set()
    groups = {}
    for i, (label, _) in enumerate(messages):
        groups.setdefault(label, []).append(i)
    for group in groups.values():
        drawn = torch.randperm(len(group), generator=generator)[: min(map(len, groups.values()))]
        kept |= {group[i] for i in drawn.tolist()}
    return [message for i, message in enumerate(messages) if i in kept]


def encode(tokenizer, text, max_tokens):
    """Token ids of `text`, at most the first `max_tokens`; an empty text is <|endoftext|>, so that one can be read."""
    ids = tokenizer.encode_ordinary(text)[:max_tokens]
    return ids or [tokenizer.encode_single_token(END_OF_TEXT)]


class LabelledTexts(Dataset):
    """Token ids and label number of each message."""

    def __init__(self, messages, tokenizer, max_tokens, labels=LABELS):
        self.ids = [torch.tensor(encode(tokenizer, text, max_tokens)) for _, text in messages]
        self.labels = torch.tensor([labels.index(label) for label, _ in messages])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return self.ids[i], self.labels[i]


def collate(batch):
    """[(ids, label), ...] -> tokens [B, T], lengths [B], labels [B]; T is the longest of this batch."""
    ids, labels = zip(*batch, strict=True)
    return *pad(ids), torch.stack(labels)


def last_hidden(gpt, tokens, lengths):
    """`gpt.hidden(tokens)` at each row's last real token: tokens [B, T], lengths [B] -> [B, D]."""
    rows = torch.arange(len(tokens), device=tokens.device)
    return gpt.hidden(tokens)[rows, lengths - 1]


class SpamClassifier(nn.Module):
    """A GPT (with its tiktoken.Encoding) whose output layer tells labels; its own head is not used any more.

    The last real token's hidden vector, which has seen the whole text, goes through a linear layer without bias,
    as in transformers' GPT2ForSequenceClassification. A text has the last label from `threshold` on.
    """

    def __init__(self, gpt, tokenizer, labels=LABELS, threshold=0.5):
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be between 0 and 1")
        self.threshold = threshold
        self.gpt, self.tokenizer, self.labels = gpt, tokenizer, tuple(labels)
        self.config = gpt.config  # what a checkpoint of the training loop notes
        self.head = nn.Linear(gpt.config.emb_dim, len(labels), bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.head.to(gpt.token_embedding.weight)

    def forward(self, tokens, lengths=None):
        """tokens [B, T] -> logits [B, L] at each row's last real token; without `lengths`, of all tokens [B, T, L]."""
        return self.head(self.gpt.hidden(tokens) if lengths is None else last_hidden(self.gpt, tokens, lengths))

    def predict(self, texts, batch_size=32):
        """(label of each text, probabilities [N, L] on the CPU). Texts longer than the context are cut at its end.

        Raises TypeError for a single text, FloatingPointError where the model gives NaN.
        """
        device = self.head.weight.device
        ids = [encode(self.tokenizer, text, self.gpt.config.context_length) for text in as_list(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike in length: little padding
        probabilities = torch.zeros(len(ids), len(self.labels))
        for rows in BatchSampler(order, batch_size, drop_last=False):
            tokens, lengths = pad([torch.tensor(ids[i]) for i in rows])
            with evaluating(self):
                logits = self(tokens.to(device), lengths.to(device))
            probabilities[rows] = logits.float().softmax(dim=-1).cpu()
        if probabilities.isnan().any():
            raise FloatingPointError("the classifier's probabilities are NaN; its weights are damaged")
        called = probabilities[:, :-1].argmax(dim=-1).masked_fill(probabilities[:, -1] >= self.threshold, -1)
        return [self.labels[i] for i in called.tolist()], probabilities

    def save(self, folder):
        """Write a folder that `load` and transformers' AutoModelForSequenceClassification read."""
        numbers = {str(i): label for i, label in enumerate(self.labels)}
        settings = {
            "architectures": [architecture_of(self.config)[0].CLASSIFIER], "id2label": numbers,
            "label2id": {label: int(i) for i, label in numbers.items()},
            "pad_token_id": self.tokenizer.encode_single_token(END_OF_TEXT), "threshold": float(self.threshold),
        }  # fmt: skip
        score = {"score.weight": self.head.weight.detach().cpu().contiguous()}
        save_model(self.gpt, self.tokenizer, folder, extra=score, settings=settings)

    @classmethod
    def load(cls, folder):
        """The classifier that `save` wrote, in eval mode. Raises FileNotFoundError or ValueError, naming the file."""
        folder = Path(folder)
        gpt, tokenizer = load_model(folder, extra=("score.weight",))
        score, labels, threshold = load_score(folder, gpt.config.emb_dim)
        if score is None or tokenizer is None:
            raise ValueError(f"{folder} is no classifier: it has no {'score.weight' if score is None else 'tokenizer'}")
        classifier = cls(gpt, with_end_of_text(tokenizer, folder), labels, threshold)
        classifier.head.weight.data.copy_(score)
        return classifier.eval()


def load_score(folder, width):
    """Of the classifier in a Hugging Face folder: output layer [L, width] or None, names of its L labels, threshold.

    Raises ValueError, naming the file, where they do not fit the model or each other.
    """
    settings, files = open_folder(folder)
    score, threshold = find_tensors(files).get("score.weight"), settings.get("threshold", 0.5)
    if score is None:
        return None, [], threshold
    if score.dim() != 2 or not len(score) or score.shape[1] != width or not score.is_floating_point():
        found = f"{', '.join(map(str, files))}: score.weight is {list(score.shape)} {score.dtype}".replace("torch.", "")
        raise ValueError(f"{found}; a classifier has [labels, {width}] for it")
    found = settings.get("id2label") or {}
    names = [found.get(str(i), f"LABEL_{i}") if isinstance(found, dict) else None for i in range(len(score))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{Path(folder) / 'config.json'}: id2label must give each number of a label its name")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"{Path(folder) / 'config.json'}: threshold is {threshold!r:.40}; it must be from 0 to 1")
    return score, names, threshold


def freeze_except(classifier, what):
    """Let only a part learn: "head", "last_block" (with final norm and head) or "all". Returns how many numbers do."""
    last_block = [classifier.gpt.blocks[-1], classifier.gpt.final_norm, classifier.head]
    parts = {"head": [classifier.head], "last_block": last_block, "all": [classifier]}
    if what not in parts:
        raise ValueError(f"freeze_except: {what!r} is not one of {', '.join(parts)}")
    classifier.requires_grad_(False)
    for part in parts[what]:
        part.requires_grad_(True)
    return sum(p.numel() for p in classifier.parameters() if p.requires_grad)


def class_weights(labels, n_labels):
    """A weight for each label so that all count alike in sum: N / (L * how often it occurs). labels [N] -> [L]."""
    counts = torch.bincount(labels, minlength=n_labels)
    if (counts == 0).any():
        raise ValueError(f"label number {int(counts.argmin())} does not occur in the training data")
    return len(labels) / (n_labels * counts.float())


def classification_loss(classifier, tokens, lengths, labels, weight=None):
    """Mean cross-entropy of the labels [B] of tokens [B, T] with `lengths` [B] real ones each, times the `weight` [L]
    of its label. (F.cross_entropy's weighted mean divides by the weights of the batch: ham alone would count in full.)
    """
    loss = F.cross_entropy(classifier(tokens, lengths).float(), labels, weight=weight, reduction="sum")
    return loss / len(labels)


def train_classifier(classifier, messages, val_messages=None, *, batch_size=16, weights=None, seed=0, **settings):
    """Train `classifier` in place with `training.train` and its `settings` (epochs, lr, ...), each message weighted
    by the `weights` [L] of its label; returns the History."""
    context, device = classifier.gpt.config.context_length, classifier.head.weight.device
    weight = None if weights is None else weights.to(device)

    def loader_of(messages):
        data = LabelledTexts(messages, classifier.tokenizer, context, classifier.labels)
        buckets = LengthBuckets(map(len, data.ids), batch_size, torch.Generator().manual_seed(seed))
        return DataLoader(data, batch_sampler=buckets, collate_fn=collate, generator=buckets.generator)

    def loss_fn(model, tokens, lengths, labels):
        return classification_loss(model, tokens, lengths, labels, weight if model.training else None)

    val_loader = loader_of(val_messages) if val_messages else None
    return training.train(classifier, loader_of(messages), val_loader, loss_fn=loss_fn, seed=seed, **settings)
