"""Classification: labelled texts, a head on the last real token, training, and a classifier to keep.

    classifier = SpamClassifier(gpt, tokenizer)                        # gpt, tokenizer = load_base()
    train_classifier(classifier, train_messages, validation_messages)
    labels, probabilities = classifier.predict(["WIN a prize now", "see you at 8"])
    classifier.save("spam_model")                                  # AutoModelForSequenceClassification loads it
    python -m shared.classification spam_model < messages.txt      # one a line; or a CSV file with a line of headings

A message is a pair (label, text). Shapes: B messages, T tokens, D width, L labels, N messages in all.
"""

import argparse
import csv
import io
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from shared import training
from shared.batches import LengthBuckets, as_list, pad
from shared.checkpoints import find_tensors, load_model, open_folder, save_model
from shared.tokenizer import END_OF_TEXT, with_end_of_text

LABELS = ("ham", "spam")  # the number of a label is its place here; the last one is what is looked for
_LABEL_COLUMNS = ("label", "category", "class", "target", "v1")  # usual headings in a CSV file
_TEXT_COLUMNS = ("text", "message", "sms", "content", "body", "v2")


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


def read_messages(path, labels=LABELS):
    """The messages of a file: tab-separated, or .csv (label, text, perhaps a line of headings), UTF-8 or Windows-1252.

    Raises FileNotFoundError, or ValueError naming the file and the line.
    """
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = raw.decode("cp1252", errors="replace")
        print(f"{path}: line {raw[: error.start].count(10) + 1} is not UTF-8; the file is read as Windows-1252")
    try:
        if Path(path).suffix.lower() == ".csv":
            text = _tab_separated(text, labels)
        return parse_messages(text, labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _tab_separated(text, labels):
    """The rows of a CSV text as lines `label<TAB>text`, each at the number of the line where it ends in the file.

    A comma that stands unquoted in a message belongs to it. Raises ValueError for a quote that is not closed.
    """
    reader, lines = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        for number, row in enumerate(filter(None, reader)):
            while len(row) > 2 and not row[-1]:
                row.pop()
            heading = number == 0 and len(row) > 1 and row[0] not in labels
            lines += [""] * (reader.line_num - 1 - len(lines))
            lines.append("" if heading else "\t".join([row[0], " ".join(",".join(row[1:]).split())][: len(row)]))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return "\n".join(lines)


def deduplicate(messages):
    """The messages without those whose text, letter case and spacing aside, stood before."""
    seen, kept = set(), []
    for label, text in messages:
        key = " ".join(text.split()).casefold()
        if key not in seen:
            seen.add(key)
            kept.append((label, text))
    return kept


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
    """`gpt.hidden(tokens)` at each row's last real token, and only there: tokens [B, T], lengths [B] -> [B, D].

    In the last block the other tokens are still looked at, by their keys and values, but nobody reads what it makes of
    them: they need no projection and no feed-forward, and the causal mask shrinks to one row.
    """
    x = gpt.embed(tokens)  # [B, T, D]
    for block in gpt.blocks[:-1]:
        x = block(x)
    block, (B, T, _), last = gpt.blocks[-1], x.shape, lengths - 1
    heads = block.attention.qkv(block.norm1(x)).view(B, T, 3, block.attention.n_heads, -1)
    _, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, H, T, K] each
    mask = torch.arange(T, device=x.device) <= last[:, None, None, None]  # [B, 1, 1, T]
    x = x[torch.arange(B, device=x.device), last][:, None]  # [B, 1, D]
    return gpt.final_norm(block(x, cache=lambda *own: (k, v, mask)))[:, 0]


class SpamClassifier(nn.Module):
    """A GPT whose output layer tells labels.

    The last real token's hidden vector, which has seen the whole text, goes through a linear layer without bias,
    as in transformers' GPT2ForSequenceClassification.

    `gpt` is a GPTModel, whose own head is not used any more, `tokenizer` its tiktoken.Encoding.
    """

    def __init__(self, gpt, tokenizer, labels=LABELS):
        super().__init__()
        self.gpt, self.tokenizer, self.labels = gpt, tokenizer, tuple(labels)
        self.config = gpt.config  # what a checkpoint of the training loop notes
        self.head = nn.Linear(gpt.config.emb_dim, len(labels), bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.to(gpt.token_embedding.weight)

    def forward(self, tokens, lengths=None):
        """tokens [B, T] -> logits [B, L] at each row's last real token; without `lengths`, of all tokens [B, T, L]."""
        return self.head(self.gpt.hidden(tokens) if lengths is None else last_hidden(self.gpt, tokens, lengths))

    @torch.no_grad()
    def predict(self, texts, batch_size=32):
        """(label of each text, probabilities [N, L] on the CPU). Texts longer than the context are cut at its end.

        Raises TypeError for a single text, FloatingPointError where the model gives NaN.
        """
        device, was_training = self.head.weight.device, self.training
        ids = [encode(self.tokenizer, text, self.gpt.config.context_length) for text in as_list(texts)]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike in length: little padding
        probabilities = torch.zeros(len(ids), len(self.labels))
        self.eval()
        for rows in BatchSampler(order, batch_size, drop_last=False):
            tokens, lengths = pad([torch.tensor(ids[i]) for i in rows])
            logits = self(tokens.to(device), lengths.to(device))
            probabilities[rows] = logits.float().softmax(dim=-1).cpu()
        self.train(was_training)
        if probabilities.isnan().any():
            raise FloatingPointError("the classifier's probabilities are NaN; its weights are damaged")
        return [self.labels[i] for i in probabilities.argmax(dim=-1).tolist()], probabilities

    def save(self, folder):
        """Write a folder that `load` and transformers' AutoModelForSequenceClassification read."""
        numbers = {str(i): label for i, label in enumerate(self.labels)}
        settings = {
            "architectures": ["GPT2ForSequenceClassification"], "id2label": numbers,
            "label2id": {label: int(i) for i, label in numbers.items()},
            "pad_token_id": self.tokenizer.encode_single_token(END_OF_TEXT),
        }  # fmt: skip
        score = {"score.weight": self.head.weight.detach().cpu().contiguous()}
        save_model(self.gpt, self.tokenizer, folder, extra=score, settings=settings)

    @classmethod
    def load(cls, folder):
        """The classifier in a folder that `save` wrote, in eval mode.

        Raises FileNotFoundError or ValueError, naming the file, where there is none.
        """
        folder = Path(folder)
        gpt, tokenizer = load_model(folder, extra=("score.weight",))
        score, labels = load_score(folder)
        if score is None or tokenizer is None:
            raise ValueError(f"{folder} is no classifier: it has no {'score.weight' if score is None else 'tokenizer'}")
        classifier = cls(gpt, with_end_of_text(tokenizer, folder), labels)
        classifier.head.weight.data.copy_(score)
        return classifier.eval()


def load_score(folder):
    """The output layer [L, D] of the classifier in a Hugging Face folder, or None, and the names of its L labels.

    Raises ValueError, naming the file, where they do not fit the model or each other.
    """
    settings, files = open_folder(folder)
    score, names = find_tensors(files).get("score.weight"), []
    if score is None:
        return None, names
    if score.dim() != 2 or not len(score) or score.shape[1] != settings["n_embd"] or not score.is_floating_point():
        found = f"{list(score.shape)} {str(score.dtype).removeprefix('torch.')}"
        where = ", ".join(map(str, files))
        raise ValueError(f"{where}: score.weight is {found}; a classifier has [labels, {settings['n_embd']}] for it")
    found = settings.get("id2label") or {}
    names = [found.get(str(i), f"LABEL_{i}") if isinstance(found, dict) else None for i in range(len(score))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{Path(folder) / 'config.json'}: id2label must give each number of a label its name")
    return score, names


def freeze_except(classifier, what):
    """Let only a part of the classifier learn: "head", "last_block" (with the final norm and the head) or "all".

    Returns the number of parameters that learn.
    """
    parts = {
        "head": [classifier.head],
        "last_block": [classifier.gpt.blocks[-1], classifier.gpt.final_norm, classifier.head],
        "all": [classifier],
    }
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
    """Mean cross-entropy of the labels [B] of tokens [B, T] with `lengths` [B] real ones each."""
    return F.cross_entropy(classifier(tokens, lengths).float(), labels, weight=weight)


def train_classifier(classifier, messages, val_messages=None, *, batch_size=16, weights=None, seed=0, **settings):
    """Train `classifier` in place with `training.train` and its `settings` (epochs, lr, ...); returns the History.

    `weights` [L]: how much a message of each label counts.
    """
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


def _read_table(text):
    """[(label or "", message), ...] of a CSV text whose first line names its columns; None for a text that is no table.

    Raises ValueError, naming the line, for a row with other columns than the first or with a wrong quote.
    """
    first = text.partition("\n")[0][:1000]
    for delimiter in ",;\t":
        names = [name.lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        label, column = ([names.index(name) for name in usual if name in names]
                         for usual in (_LABEL_COLUMNS, _TEXT_COLUMNS))  # fmt: skip
        if column and names == [name.strip() for name in names]:
            break
        if label and len(names) > 1 and not re.search(r"\s", "".join(names)):
            raise ValueError(f"line 1 names no column of texts ({', '.join(_TEXT_COLUMNS)}): {first[:60]!r}")
    else:
        return None
    reader, messages = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []
    try:
        for row in filter(None, reader):
            if len(row) != len(names):
                raise ValueError(f"line {reader.line_num}: {len(row)} columns, where line 1 names {len(names)}; "
                                 f"a text with {delimiter!r} in it must stand in quotes")
            messages.append((row[label[0]] if label else "", " ".join(row[column[0]].split())))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return messages[1:]


def _how_many_right(given, called, labels):
    """One line: how many of the labels that were `given` are those that the messages are `called` by."""
    given, called = ([label.strip().lower() for label in column] for column in (given, called))
    counts = {label: (sum(g == c == label.lower() for g, c in zip(given, called, strict=True)),
                      given.count(label.lower())) for label in labels}  # fmt: skip
    right, n = map(sum, zip(*counts.values(), strict=True))
    others = f"; {len(given) - n} rows have a label that the model does not know" if n < len(given) else ""
    return f"right: {right} of {n} ({', '.join(f'{label} {k} of {m}' for label, (k, m) in counts.items())}){others}"


def main(argv=None):
    """`python -m shared.classification`: label the messages that come in: one a line, or one a row of a CSV text.

    The first line of a CSV text must name its columns (such as label,text). Where it has labels, the last line, on
    standard error, says how many were right.
    """
    parser = argparse.ArgumentParser(prog="python -m shared.classification", description=main.__doc__)
    parser.add_argument("model", metavar="MODEL", help="a folder that SpamClassifier.save wrote")
    parser.add_argument("--threshold", type=float, default=0.5, help="call it by the last label from here on")
    args = parser.parse_args(argv)
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    sys.stdout.reconfigure(errors="replace")
    try:
        classifier = SpamClassifier.load(args.model)
        text = sys.stdin.read()
        table = _read_table(text)
        lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
        given, texts = zip(*table, strict=True) if table else ((), lines)
        if table == [] or not text.strip():
            raise ValueError("there is no message")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    called = []
    for text, scores in zip(texts, classifier.predict(texts)[1][:, -1].tolist(), strict=True):
        called.append(classifier.labels[-1 if scores >= args.threshold else 0])
        print(f"{called[-1]}\t{scores:.4f}\t{text}")
    if any(given):
        print(_how_many_right(given, called, classifier.labels), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
