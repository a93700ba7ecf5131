"""What each data set's file holds: one function for each kind, from a path to text, passages or test items.

`registry.py` says which file is of which kind; lessons call `data.load`. Each function raises an error (ValueError,
OSError or the library's own) for a file that is not whole or not of its kind. None writes to disk.
"""

import csv
import io
import json
import re
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

from shared.data.formats import parse_json, read_records, read_text

MEMBER_LIMIT = 10_000_000  # bytes; no file inside an archive that is read here comes near it


def _texts(path, *columns):
    """The records of a file whose `columns` must all be text."""
    records = read_records(path)
    for number, record in enumerate(records, start=1):
        for column in columns:
            if not isinstance(record.get(column), str):
                raise ValueError(f"{path}: record {number}: {column} is {record.get(column)!r:.40}, not text")
    return records


def wikitext(path):
    """WikiText's records, one for each line of the articles -> the whole text."""
    return "".join(record["text"] for record in _texts(path, "text"))


def lambada(path):
    """LAMBADA -> its passages; the last word of each is what a model must predict."""
    return [record["text"] for record in _texts(path, "text")]


def lambada_parts(path):
    """The same from records that keep the context and the word to predict apart."""
    return [record["context"] + record["continuation"] for record in _texts(path, "context", "continuation")]


def hellaswag(path):
    """HellaSwag -> dicts with `query`, `choices` and `gold`, the number of the right one.

    The query is what EleutherAI's lm-evaluation-harness makes of a record: the activity, then the context, without the
    marks in square brackets that the WikiHow articles have.
    """
    return [{"query": _without_marks(f"{r['activity_label']}: {r['ctx_a']} {r['ctx_b'].capitalize()}"),
             "choices": [_without_marks(ending) for ending in r["endings"]], "gold": int(r["label"])}
            for r in read_records(path)]  # fmt: skip


def _without_marks(text):
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def arc(path):
    """ARC -> dicts with `query`, `choices` (three to five) and `gold`, the number of the right one, as HellaSwag's.

    The query is that of the lm-evaluation-harness: "Question: ...", and on the next line "Answer:".
    """
    return [{"query": f"Question: {r['question']}\nAnswer:", "choices": list(r["choices"]["text"]),
             "gold": r["choices"]["label"].index(r["answerKey"])} for r in read_records(path)]  # fmt: skip


def piqa(path):
    """PIQA (Bisk et al. 2020) -> dicts with `query`, `choices` (two) and `gold`, as HellaSwag's.

    From the authors' archive, whose labels are a file of their own, or from records with `label`. The query is that of
    the lm-evaluation-harness: "Question: ...", and on the next line "Answer:".
    """
    if Path(path).suffix == ".zip":
        parts = (_zip_member(path, f"physicaliqa-train-dev/{name}") for name in ("dev.jsonl", "dev-labels.lst"))
        rows, labels = (part.decode("utf-8").splitlines() for part in parts)
        records = [json.loads(row) | {"label": int(label)} for row, label in zip(rows, labels, strict=True)]
    else:
        records = read_records(path)
    return [{"query": f"Question: {r['goal']}\nAnswer:", "choices": [r["sol1"], r["sol2"]], "gold": r["label"]}
            for r in records]  # fmt: skip


def blimp(path):
    """BLiMP (Warstadt et al. 2020) -> dicts with `good` and `bad` (a sentence each), `phenomenon` and `paradigm`.

    From the authors' archive or from records like theirs. The first pair of each paradigm comes first, then the second
    of each, so that the first 670 are ten of each. The 12 phenomena are those of the paper, section 3.
    """
    if Path(path).suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if re.fullmatch(r"data/\w+\.jsonl", name))
        lines = [line for name in names for line in _zip_member(path, name).decode("utf-8").splitlines()]
        records = [json.loads(line) for line in lines]
    else:
        records = read_records(path)
    seen, pairs = Counter(), []
    for r in records:
        term = r["linguistics_term"].replace("s-selection", "argument_structure").replace("_", " ")
        pair = {"good": r["sentence_good"], "bad": r["sentence_bad"], "phenomenon": term, "paradigm": r["UID"]}
        pairs.append((seen[r["UID"]], pair))
        seen[r["UID"]] += 1
    if len(set(seen.values())) != 1:
        raise ValueError(f"not all paradigms have equally many pairs: {seen.most_common(1) + seen.most_common()[-1:]}")
    return [pair for _, pair in sorted(pairs, key=lambda item: item[0])]


def sms_text(path):
    """The SMS Spam Collection -> its text, `label<TAB>message` lines; from the archive or from the plain file.

    Lines end in a line feed. Bytes that are not UTF-8 are an error that names their line: guessing another encoding
    would change messages without a word.
    """
    content = _zip_member(path, "SMSSpamCollection") if Path(path).suffix == ".zip" else Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x})") from error


def _zip_member(path, name):
    """The bytes of the one member of a zip that is called exactly `name`."""
    with zipfile.ZipFile(path) as archive:
        if name not in archive.namelist():
            raise ValueError(f"the archive holds no {name}, but {archive.namelist()[:5]}")
        with archive.open(name) as file:
            return _read_limited(file, name)


def _read_limited(file, name):
    """The bytes of an archive's member; ValueError where it unpacks to more than MEMBER_LIMIT."""
    content = file.read(MEMBER_LIMIT + 1)  # what the archive says about the size may be false
    if len(content) > MEMBER_LIMIT:
        raise ValueError(f"{name} unpacks to more than {MEMBER_LIMIT:,} bytes")
    return content


# The folder is data/ in the authors' archive; auxiliary_train/, beside these three, is not read.
_MMLU_MEMBER = re.compile(r"(?:\./)?\w+/(dev|val|test)/(\w+)_\1\.csv")


def mmlu(path):
    """MMLU -> {"dev": [...], "val": [...], "test": [...]}; each item a dict with `subject`, `question`, `choices`
    (four) and `gold`, the number of the right one.

    From the authors' archive of CSV files (.tar, .tar.gz), whose members are read in memory and by their exact names,
    so that no path in it can lead anywhere; or from a .jsonl file of the Hub's records with their `split`.
    """
    splits = {"dev": [], "val": [], "test": []}
    if Path(path).suffix == ".jsonl":
        for r in read_records(path):
            item = {"subject": r["subject"], "question": r["question"], "choices": r["choices"], "gold": r["answer"]}
            splits[r["split"]].append(item)
        return splits
    with tarfile.open(path, "r|*") as archive:  # "|": from front to back, once
        for member in archive:
            found = _MMLU_MEMBER.fullmatch(member.name)
            if found and member.isfile():
                split, subject = found.groups()
                splits[split] += _mmlu_items(subject, member.name, archive.extractfile(member))
    subjects = {item["subject"] for items in splits.values() for item in items}
    for split, items in splits.items():  # tarfile takes an archive that was cut off between two members for a whole one
        lacking = sorted(subjects - {item["subject"] for item in items})
        if lacking or not items:
            raise ValueError(f"no {split} questions of {', '.join(lacking[:5]) or 'any subject'}")
    return splits


def _mmlu_items(subject, name, file):
    """The items of one CSV file without a header: question, four choices, the letter of the right one."""
    text = _read_limited(file, name).decode("utf-8-sig")
    items = []
    for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=1):
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise ValueError(f"{name}, row {number} is no question with four choices and a letter A to D")
        items.append({"subject": subject, "question": row[0], "choices": row[1:5], "gold": "ABCD".index(row[5])})
    return items


def conversations(path):
    """Conversations -> records, each with a list of its turns, which `shared.conversation_files.from_record` reads.

    From Taskmaster's .json (a list), Topical-Chat's (an object of them), OASST1's .parquet of single messages, or
    records that have their turns together.
    """
    kind = Path(path).suffix
    found = parse_json(read_text(path)) if kind == ".json" else read_records(path)
    found = [*found.values()] if isinstance(found, dict) else _threads(found) if kind == ".parquet" else found
    for number, record in enumerate(found, start=1):
        if not any(isinstance(record.get(name), list) for name in ("messages", "turns", "utterances", "content")):
            raise ValueError(f"{path}: record {number} has no list of turns, but {', '.join(record)[:60]}")
    return found


def _threads(messages):
    """OASST1's messages (Koepf et al. 2023), English ones -> one thread of each tree, by the best-ranked replies."""
    replies = {}
    for message in messages:
        if message["lang"] == "en":
            replies.setdefault(message["parent_id"], []).append(message)
    threads = []
    for message in replies.get(None, []):
        turns = []
        while message:
            turns.append({"role": message["role"], "content": message["text"]})
            below = replies.get(message["message_id"], [])
            message = min(below, key=lambda reply: reply["rank"] if reply["rank"] is not None else 99, default=None)
        threads.append({"messages": turns})
    return threads
