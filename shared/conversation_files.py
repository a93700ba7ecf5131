"""Conversations out of files, cleaned and checked: CSV, JSON, JSON lines, ShareGPT, OpenAI's messages, chat logs.

A conversation is a list of turns {"role", "content"}; the roles are system, user and assistant.

    found = read_conversations("my_chats.csv")
    conversations, problems = check_conversations([cleaned(conversation) for conversation in found])
"""

import csv
import io
import json
import re
import unicodedata
from itertools import groupby
from pathlib import Path

from shared.data.formats import parse_json
from shared.personal_data import mask_personal
from shared.tokenizer import valid_unicode

ROLES = ("system", "user", "assistant")
# What others call a conversation's turns, who speaks, and what is said; the first that is there counts.
TURNS = ("messages", "conversations", "conversation", "turns", "utterances", "content")
SPEAKER = ("role", "from", "speaker", "agent", "author", "sender")
SAID = ("content", "value", "text", "message", "utterance", "body")
THREAD = ("conversation", "conversation_id", "thread", "thread_id", "chat", "id")
SPEAKERS = {name: role for role, names in {
    "system": "system developer", "user": "user human customer student prompter client agent_1",
    "assistant": "assistant gpt bot chatgpt model agent support agent_2",
}.items() for name in names.split()}  # fmt: skip


def read_conversations(file, encoding="utf-8-sig", speakers=None):
    """The conversations in a file: a list of lists of {"role", "content"}.

    `.csv`: a row for each turn, with a column each for conversation, speaker and text (their names: THREAD, SPEAKER,
    SAID). `.json`, `.jsonl`: records as `from_record` reads them. Any other: a log with lines "user: text". `speakers`
    adds to SPEAKERS, such as {"anna": "user"}. Raises ValueError, naming the file and what is wrong in it.
    """
    file, known = Path(file), SPEAKERS | {name.casefold(): role for name, role in (speakers or {}).items()}
    content = file.read_bytes()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}: line {line} is not {encoding} (byte 0x{content[error.start]:02x}): save the whole "
                         "file as UTF-8, or name its encoding") from None  # fmt: skip
    try:
        if not text.strip():
            raise ValueError("the file is empty")
        if file.suffix.lower() == ".csv":
            return _from_csv(text, known)
        read = _from_json if file.suffix.lower() in (".json", ".jsonl") else _from_log
        return read(text, known)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}: {error}") from None


def _from_csv(text, known):
    separator = max(",;\t", key=text.lstrip().split("\n")[0].count)  # spreadsheets of many countries write semicolons
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names = next(row for row in rows if row)
    columns = {name.strip().casefold(): i for i, name in enumerate(names)}
    places = [next((columns[name] for name in wanted if name in columns), None) for wanted in (THREAD, SPEAKER, SAID)]
    if None in places:
        wanted = " and ".join(f"one of {', '.join(usual)}" for usual, place in zip((THREAD, SPEAKER, SAID), places)
                              if place is None)  # fmt: skip
        raise ValueError(f"its columns are {', '.join(map(repr, names))}; it needs {wanted}")
    (thread, speaker, said), found = places, {}
    try:
        for row in filter(any, rows):  # spreadsheets leave rows of empty cells
            if len(row) != len(names):
                raise ValueError(f"line {rows.line_num} has {len(row)} columns for {len(names)} headings; a text with "
                                 f"{separator!r} in it must stand in quotes")  # fmt: skip
            found.setdefault(row[thread], []).append({"role": _role(row[speaker], known), "content": row[said]})
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}; is a quote never closed?") from None
    return list(found.values())


def _from_json(text, known):
    try:
        records = parse_json(text)
    except ValueError as whole:
        records = []
        for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at U+2028
            try:
                records += [parse_json(line)] if line.strip() else []
            except ValueError as error:
                what = whole if text.lstrip().startswith("[") else f"line {number}: {error}"
                raise ValueError(f"it is no JSON, and no JSON lines: {what}") from None
    records = records if isinstance(records, list) else [records]
    return [from_record(record, known, f"record {i}") for i, record in enumerate(records, start=1)]


def from_record(record, known=SPEAKERS, name="the record"):
    """The conversation in a record: {"messages": [{"role", "content"}]} (OpenAI), {"conversations": [{"from",
    "value"}]} (ShareGPT), the same under other names (TURNS, SPEAKER, SAID), or the list of turns itself."""
    turns = record
    if isinstance(record, dict):
        turns = next((record[key] for key in TURNS if key in record), None)
    if not isinstance(turns, list):
        held = f"has {', '.join(map(repr, record))}" if isinstance(record, dict) else f"is {json.dumps(record):.40}"
        raise ValueError(f"{name} {held}; it needs a list of turns under one of {', '.join(TURNS)}")
    conversation = []
    for i, turn in enumerate(turns):
        keys = turn if isinstance(turn, dict) else ()
        speaker, said = (next((key for key in names if key in keys), None) for names in (SPEAKER, SAID))
        if speaker is None or said is None:
            raise ValueError(f"{name}, turn {i} is {json.dumps(turn):.60}; it needs a speaker and a text")
        conversation.append({"role": _role(turn[speaker], known), "content": _text(turn[said])})
    return conversation


def _role(name, known):
    name = str(name).strip().casefold()
    return known.get(name, name)


def _text(said):
    """OpenAI's content may be a list of parts; what is no text, such as a picture, is left out."""
    if isinstance(said, list):
        parts = (part.get("text") for part in said if isinstance(part, dict))
        said = "\n".join(part for part in parts if isinstance(part, str))
    return said if isinstance(said, str) else ""


_DAY, _TIME = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4},?[ \t]+", r"\d{1,2}:\d{2}(?::\d{2})?(?:[ \u202f]?[AaPp][Mm])?"
_STAMP = re.compile(rf"(?:\[[^\]\n]{{4,30}}\]|(?:{_DAY})?{_TIME})?[ \t]*(?:-[ \t]+)?")


def _from_log(text, known):
    """Lines "user: text", perhaps after a time; other lines go on with the turn. A blank line ends a conversation.

    In a messenger's log each turn has its day and time: there a blank line in front of an undated one is the turn's, a
    dated line by nobody is the messenger's own, and one by somebody unknown is an error.
    """
    found, blank, messenger = [], True, False
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip("\r\u200e")
        stamp = _STAMP.match(line)[0]
        dated = len(re.findall(r"\d+", stamp)) >= 5
        opened = re.match(r"([^:]{1,40}):(?:\s+(.*))?$", line[len(stamp) :])
        if not line.strip(" \t-="):
            blank = True
        elif opened and opened[1].strip().casefold() in known:
            found += [[]] if blank else []
            found[-1].append({"role": _role(opened[1], known), "content": opened[2] or ""})
            blank, messenger = False, messenger or dated
        elif found and not dated and (messenger or not blank):
            found[-1][-1]["content"] += "\n\n"[: 1 + blank] + line
            blank = False
        elif opened or not dated:
            raise ValueError(f"line {number} begins with no speaker that is known: {line!r:.42}; name yours with "
                             "speakers={'anna': 'user', ...}")  # fmt: skip
    return found


def normalised(text):
    """The text in Unicode's form NFC (which, unlike NFKC, leaves x² alone), without invisible characters, and with
    single blanks; line breaks stay, two in a row at most."""
    text = unicodedata.normalize("NFC", valid_unicode(text)).replace("\r\n", "\n").replace("\r", "\n")
    kept = "".join(c for c in text if c in "\n\t\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Co"))
    kept = re.sub(r"[^\S\n]+", " ", kept)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", kept)).strip()


def cleaned(conversation, mask=True):
    """The conversation with each text normalised and, unless `mask` is False, its personal data masked."""
    texts = [normalised(turn["content"]) for turn in conversation]
    return [turn | {"content": mask_personal(text) if mask else text} for turn, text in zip(conversation, texts)]


def join_turns(conversation):
    """The conversation with turns that one speaker took one after the other made one, a line break between them."""
    spoken = groupby(conversation, key=lambda turn: turn["role"])
    return [{"role": role, "content": "\n".join(turn["content"] for turn in turns)} for role, turns in spoken]


def check_conversations(conversations):
    """Keep the usable ones: (conversations, problems), a problem being (place counted from 0, what is wrong with it).

    A conversation may begin with a system turn; then user and assistant alternate, the user first, and no text is
    empty. One that is there twice counts once.
    """
    kept, problems, seen = [], [], {}
    for i, conversation in enumerate(conversations):
        key = json.dumps(conversation)
        wrong = f"the same as conversation {seen[key]}" if key in seen else _problem(conversation)
        if wrong:
            problems.append((i, wrong))
        else:
            seen[key] = i
            kept.append(conversation)
    return kept, problems


def _problem(conversation):
    """What is wrong with a conversation; None where nothing is."""
    for i, turn in enumerate(conversation):
        if turn["role"] not in ROLES:
            return f"turn {i} is by {turn['role']!r:.40}; the roles are {', '.join(ROLES)}"
        if not turn["content"].strip():
            return f"turn {i} is empty"
    spoken = [turn["role"] for turn in conversation]
    spoken = spoken[1:] if spoken[:1] == ["system"] else spoken
    if spoken[:1] == ["assistant"]:
        return "it begins with the assistant"
    for i, role in enumerate(spoken):
        if role != ("user", "assistant")[i % 2]:
            return f"turn {len(conversation) - len(spoken) + i} is by the {role}, and so out of turn"
    return None if "assistant" in spoken else "the assistant says nothing"
