"""Messages in files: label those that come in with a classifier of your own, or read labelled ones to learn from.

    python 04_classification_finetune/classify.py MODEL < messages.txt

MODEL is a folder that `SpamClassifier.save` wrote. Messages come one a line, or one a row of a CSV text whose first
line names its columns (such as label,text). Where it has labels, the last line, on standard error, says how many were
right. `read_messages` gives the labelled messages of a file to `train_classifier`.
"""

import argparse
import csv
import io
import re
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from shared.classification import LABELS, SpamClassifier, parse_messages  # noqa: E402

LABEL_COLUMNS = ("label", "category", "class", "target", "v1")  # usual headings in a CSV file
TEXT_COLUMNS = ("text", "message", "sms", "content", "body", "v2")


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
            text = tab_separated(text, labels)
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
            heading = number == 0 and len(row) > 1 and row[0] not in labels
            lines += [""] * (reader.line_num - 1 - len(lines))
            lines.append("" if heading else "\t".join([row[0], " ".join(",".join(row[1:]).split())][: len(row)]))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return "\n".join(lines)


def read_table(text):
    """[(label or "", message), ...] of a CSV text whose first line names its columns; None for a text that is no table.

    Raises ValueError, naming the line, for a row with other columns than the first or with a wrong quote.
    """
    first = text.partition("\n")[0][:1000]
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


def how_many_right(given, called, labels):
    """One line: how many of the labels that were `given` are those that the messages are `called` by."""
    given, called = ([label.strip().lower() for label in column] for column in (given, called))
    counts = {label: (sum(g == c == label.lower() for g, c in zip(given, called, strict=True)),
                      given.count(label.lower())) for label in labels}  # fmt: skip
    right, n = map(sum, zip(*counts.values(), strict=True))
    others = f"; {len(given) - n} rows have a label that the model does not know" if n < len(given) else ""
    return f"right: {right} of {n} ({', '.join(f'{label} {k} of {m}' for label, (k, m) in counts.items())}){others}"


def main(argv=None):
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a folder that SpamClassifier.save wrote")
    parser.add_argument("--threshold", type=float, help="call it by the last label from here on (default: MODEL's own)")
    args = parser.parse_args(argv)
    if args.threshold is not None and args.threshold != args.threshold:
        parser.error("--threshold is NaN, which no probability reaches")
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
    sys.stdout.reconfigure(errors="replace")
    try:
        classifier = SpamClassifier.load(args.model)
        if sys.stdin.isatty():
            print("type a message a line, then Ctrl-D (Windows: Ctrl-Z)", file=sys.stderr)
        text = sys.stdin.read()
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
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # where `| head` has read enough, it is done
    raise SystemExit(main())
