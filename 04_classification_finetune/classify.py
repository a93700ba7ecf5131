"""A spam classifier of your own: train it on your labelled messages, then label those that come in.

    python 04_classification_finetune/classify.py --train messages.csv --out data/my_filter
    python 04_classification_finetune/classify.py data/my_filter < inbox.txt

Messages to learn from stand in a CSV file whose first line names its columns (such as label,text, in any order; labels
ham and spam), or one a line: label, tab, text. It learns as in lesson 4.1 and keeps the classifier, with its threshold,
in the folder. Messages to label come one a line, or one a row of a CSV text with named columns. Each is printed after
its label and the probability of spam; where the text has labels, a last line, on standard error, says how many were
right. What is not UTF-8 is read as Windows-1252.
"""

import argparse
import csv
import io
import math
import re
import sys
import tempfile
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from shared import classification  # noqa: E402
from shared.checkpoints import load_base  # noqa: E402
from shared.classification import LABELS, SpamClassifier, parse_messages  # noqa: E402
from shared.files import command_line  # noqa: E402
from shared.metrics import classification_metrics  # noqa: E402
from shared.runtime import get_device, scale, seed_everything  # noqa: E402

LABEL_COLUMNS = ("label", "category", "class", "target", "v1")  # usual headings in a CSV file
TEXT_COLUMNS = ("text", "message", "sms", "content", "body", "v2")
FEWEST = 10  # different messages of each label, of which one chooses the epoch and two measure
RECIPE = {"quick": (3600, 1e-3), "full": (10_800, 5e-5)}  # of lesson 4.1: messages shown at least, learning rate


def decoded(raw, where):
    """`raw` as text: lines in UTF-8, and those that are not in Windows-1252, of which one line on stderr tells."""
    lines, odd = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), []
    for i, line in enumerate(lines):
        try:
            lines[i] = line.decode("utf-8")
        except UnicodeDecodeError:
            lines[i] = line.decode("cp1252", errors="replace")
            odd.append(i + 1)
    if odd:
        more = f", nor are {len(odd) - 1} others" if odd[1:] else ""
        print(f"{where}: line {odd[0]} is not UTF-8{more}; read as Windows-1252", file=sys.stderr)
    return "\n".join(lines)


def read_messages(path, labels=LABELS):
    """The labelled messages of a file: a CSV text with named columns, rows label,text of a .csv, or label, tab, text.

    Raises FileNotFoundError, or ValueError naming the file and the line.
    """
    text = decoded(Path(path).read_bytes(), path)
    try:
        unnamed = re.match(rf"({'|'.join(map(re.escape, labels))})\s*[,;\t]", text, re.IGNORECASE)
        table = None if unnamed else read_table(text, labels)
        if table is not None:
            if not table:
                raise ValueError("there is no message")
            return table
        if Path(path).suffix.lower() == ".csv":
            first, text = text.partition("\n")[0].strip(), tab_separated(text, labels)
            if not unnamed and not re.match(rf"\s*({'|'.join(map(re.escape, labels))})\t", text):
                raise ValueError(f"line 1 is {first[:60]!r}: it must name the columns, as in label,text")
        return parse_messages(text, labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def tab_separated(text, labels):
    """The rows of a CSV text as lines `label<TAB>text`, each at the number of the line where it ends in the file.

    A comma that stands unquoted in a message belongs to it. Raises ValueError for a quote that is not closed.
    """
    reader, lines = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        for number, row in enumerate(filter(None, reader)):
            while len(row) > 2 and not row[-1]:
                row.pop()
            row[0] = row[0].strip().lower()
            heading = number == 0 and len(row) > 1 and row[0] not in labels
            lines += [""] * (reader.line_num - 1 - len(lines))
            lines.append("" if heading else "\t".join([row[0], " ".join(",".join(row[1:]).split())][: len(row)]))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return "\n".join(lines)


def read_table(text, labels=None):
    """[(label or "", message), ...] of a CSV text whose first line names its columns; None for a text that is no table.

    With `labels` each row must have one of them. Columns without a name, after the text, hold what unquoted commas cut
    off it; one before it is the number of the row, as pandas writes it.
    Raises ValueError, naming the line, for a row with other columns than the first, a wrong label or a wrong quote.
    """
    first = re.split(r"[\r\n]", text, maxsplit=1)[0][:1000]
    for delimiter in ",;\t":
        names = [name.lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        label, column = ([names.index(name) for name in usual if name in names]
                         for usual in (LABEL_COLUMNS, TEXT_COLUMNS))  # fmt: skip
        if column and names == [name.strip() for name in names]:
            break
        if label and len(names) > 1 and not re.search(r"\s", "".join(names)):
            raise ValueError(f"line 1 names no column of texts ({', '.join(TEXT_COLUMNS)}): {first[:60]!r}")
    else:
        return None
    if labels and not label:
        raise ValueError(f"line 1 names no column of labels ({', '.join(LABEL_COLUMNS)}): {first[:60]!r}")
    reader, messages = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), []
    places = [column[0], *(i for i, name in enumerate(names) if not name and i > column[0])]
    try:
        for row in filter(None, reader):
            if len(row) != len(names):
                raise ValueError(f"line {reader.line_num}: {len(row)} columns, where line 1 names {len(names)}; "
                                 f"a text with {delimiter!r} in it must stand in quotes")
            given = row[label[0]] if label else ""
            if labels and messages:  # the first row is the headings
                given = given.strip().lower()
                if given not in labels:
                    raise ValueError(f"line {reader.line_num}: the label is {given[:20]!r}; it must be one of "
                                     f"{', '.join(labels)}")
            message = delimiter.join(row[i] for i in places).rstrip(delimiter if places[1:] else "")
            messages.append((given, re.sub(r"\s*[\r\n]\s*", " ", message)))  # each on one line, its blanks as they are
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return messages[1:]


def how_many_right(given, called, labels):
    """One line: how many of the labels that were `given` are those that the messages are `called` by."""
    given, called = ([label.strip().lower() for label in column] for column in (given, called))
    counts = {label: (sum(g == c == label.lower() for g, c in zip(given, called, strict=True)),
                      given.count(label.lower())) for label in labels}  # fmt: skip
    right, n = map(sum, zip(*counts.values(), strict=True))
    others = f"; not counted, for their labels are not the model's: {len(given) - n}" if n < len(given) else ""
    return f"right: {right} of {n} ({', '.join(f'{label} {k} of {m}' for label, (k, m) in counts.items())}){others}"


def learn(file, folder):
    """Train a classifier on the messages of `file` as lesson 4.1 does, say how good it is, and keep it in `folder`.

    True after Ctrl-C: then it is kept too, as far as it came.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not empty: name a new folder")
    found = read_messages(file)
    messages = classification.deduplicate(found)
    few = [f"{n} {label}" for label in LABELS if (n := sum(given == label for given, _ in messages)) < FEWEST]
    if few:
        raise ValueError(f"{file}: only {' and '.join(few)} without the repeated ones; it takes {FEWEST} of each label "
                         "to learn from some and measure on others")
    train, val, test = classification.split(messages)
    rate = sum(label == LABELS[1] for label, _ in train) / len(train)
    print(f"{file}: {len(found)} messages, {len(found) - len(messages)} of them repeated; {rate:.1%} are {LABELS[1]}")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # what cannot be written is told before the minutes of training
    seed_everything(41)
    base, tokenizer = load_base()
    classifier = SpamClassifier(base.to(get_device()), tokenizer)
    seen = train + [message for message in train if rate < 0.5 and message[0] == LABELS[1]]  # the rare ones twice
    shown, lr = RECIPE[scale()]
    epochs, batches = math.ceil(shown / len(seen)), math.ceil(len(seen) / 16)
    weights = classification.class_weights(torch.tensor([LABELS.index(label) for label, _ in seen]), len(LABELS))
    history = classification.train_classifier(
        classifier, seen, classification.balance(val), batch_size=16, weights=weights, epochs=epochs, lr=lr,
        warmup_steps=epochs * batches // 10)  # fmt: skip
    classifier.threshold = 1 - rate  # the weights showed it a world of halves; in this one a probability must be higher
    labels, scores = [LABELS.index(label) for label, _ in test], classifier.predict([text for _, text in test])[1][:, 1]
    measured = classification_metrics(labels, scores, classifier.threshold)
    print(f"on {measured.n} messages that it has not seen (always saying {LABELS[0]} is right in "
          f"{1 - sum(labels) / len(labels):.1%}), with 95 % intervals:")  # fmt: skip
    for what in ("accuracy", "precision", "recall", "f1"):
        low, high = getattr(measured, f"{what}_interval")
        print(f"  {what:9} {getattr(measured, what):.3f} ({low:.3f} to {high:.3f})")
    classifier.save(folder)
    early = f" after {history.steps_done} of {epochs * batches} steps" if history.interrupted else ""
    print(f"kept{early}; from a probability of {classifier.threshold:.3f} on, it says {LABELS[1]}. To label messages, "
          f"one a line or a CSV text:\n"
          f"  python 04_classification_finetune/classify.py {folder} < messages.txt")  # fmt: skip
    return history.interrupted


def main(argv=None):
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a classifier's folder: label what comes in")
    parser.add_argument("--train", metavar="FILE", type=Path, help="labelled messages to learn from")
    parser.add_argument("--out", metavar="DIR", type=Path, help="with --train: the new folder of the classifier")
    parser.add_argument("--threshold", type=float, help="call it by the last label from this probability on (default: "
                        "what is kept with the model, else 0.5)")  # fmt: skip
    args = parser.parse_args(argv)
    if (args.model is None) == (args.train is None) or (args.train is None) != (args.out is None):
        parser.error("name the folder of a classifier, or --train FILE --out DIR")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold}; a probability lies between 0 and 1")
    sys.stdout.reconfigure(errors="replace")
    try:
        if args.train:
            return 130 if learn(args.train, args.out) else 0
        classifier = SpamClassifier.load(args.model)
        if sys.stdin.isatty():
            print("type a message a line, then Ctrl-D (Windows: Ctrl-Z)", file=sys.stderr)
        text = decoded(sys.stdin.buffer.read(), "input")
        table = read_table(text)
        lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
        given, texts = zip(*table, strict=True) if table else ((), lines)
        if table is None and re.fullmatch(r"[^\s,;]+([,;\t][^\s,;]+)+", lines[0].strip()):
            print(f"line 1 looks like headings, but none names a column of texts ({', '.join(TEXT_COLUMNS)}): each "
                  "line is taken as a message", file=sys.stderr)  # fmt: skip
        if table == [] or not text.strip():
            raise ValueError("there is no message")
        if args.threshold is not None:
            classifier.threshold = args.threshold
        called, probabilities = classifier.predict(texts)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for label, p, text in zip(called, probabilities[:, -1].tolist(), texts, strict=True):
        print(f"{label}\t{p:.4f}\t{text}")
    if any(given):
        print(how_many_right(given, called, classifier.labels), file=sys.stderr)
    return 0


if __name__ == "__main__":
    command_line(main)
