"""`shared/data/formats.py` and `readers.py`: what files hold, whole, damaged or meant to do harm."""

import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from dataclasses import replace

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from shared import data
from shared.data import formats, places, readers
from tests.data.made_up import LINES, body, cached, put, status


def test_packed_records(tmp_path):
    half = LINES.index(b"\n") + 1
    frames = zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:])  # two frames, as some tools write them
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    for name in ("a.jsonl.zst", "a.jsonl.gz", "a.parquet"):
        assert formats.read_records(tmp_path / name) == [{"text": "one"}, {"text": "two"}], name


def frames_of():
    return b"".join(zstandard.compress(LINES.replace(b"o", b"%d" % i) * 20) for i in range(3))


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_packed_file_that_was_cut_anywhere_is_refused(tmp_path, kind):
    packed = gzip.compress(LINES * 20, mtime=0) if kind == "gz" else frames_of()
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed)
    whole = formats.read_records(path)
    assert len(whole) == (40 if kind == "gz" else 120)
    short = 0
    for end in range(len(packed)):
        path.write_bytes(packed[:end])
        try:
            short += len(formats.read_records(path)) in (40, 80)  # an end between two frames is none that can be seen
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
    assert short == (0 if kind == "gz" else 2)


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet"])
def test_packed_file_that_is_damaged_raises_what_is_promised(tmp_path, kind):
    path = tmp_path / f"a.jsonl.{kind}"
    if kind == "parquet":
        parquet.write_table(pyarrow.table({"text": ["one", "two"] * 50}), path)
        packed = path.read_bytes()
    else:
        packed = gzip.compress(LINES * 20) if kind == "gz" else frames_of()
    refused = 0
    for place in range(0, len(packed), 1 + len(packed) // 300):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 0x55]) + packed[place + 1 :])
        try:
            formats.read_records(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
    assert refused > 20
    for content in (b"", b"no such thing", packed[::-1], packed + b"more"):
        path.write_bytes(content)
        if not (kind == "parquet" and content == packed + b"more"):
            with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
                formats.read_records(path)
    with pytest.raises(FileNotFoundError):
        formats.read_records(tmp_path / f"none.{kind}")


def test_parquet_with_bytes_after_its_end(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes() + b"more")
    with pytest.raises(ValueError, match="a.parquet: not valid Parquet data"):
        formats.read_records(tmp_path / "a.parquet")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(("line", "reason"), [
    (DEEP, "line 3: its lists and objects are nested too deeply"), (b'{"a": ' + DEEP + b"}", "line 3: its lists and"),
    (b'{"a": 1,}', "line 3, column 9: "), (b"[1, 2]", "line 3 holds no object, but \\[1, 2\\]"),
    (b"null", "no object, but null"),
    (b'{"a": "\xe9"}', "it is not UTF-8 \\(byte 0xe9\\)"), (b"1" * 5000, "line 3"), (b"\0", "line 3, column 1"),
])  # fmt: skip
def test_line_that_is_no_record_is_named(tmp_path, line, reason):
    path = put(tmp_path, "a.jsonl", LINES + line + b"\n" + LINES)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{reason}"):
        formats.read_records(path)


def test_json_list_that_is_nested_too_deeply(tmp_path):
    path = put(tmp_path, "a.json", DEEP)
    with pytest.raises(ValueError, match=f"{path}: its lists and objects are nested too deeply"):
        formats.read_json_list(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_byte_order_mark_costs_nothing(tmp_path, pack):
    end = ".gz" if pack is gzip.compress else ""
    for mark in (b"", b"\xef\xbb\xbf"):
        assert formats.read_text(put(tmp_path, f"a.txt{end}", pack(mark + b"one\r\ntwo"))) == "one\ntwo"
        assert formats.read_records(put(tmp_path, f"a.jsonl{end}", pack(mark + LINES)))[0] == {"text": "one"}
        assert formats.read_entries(put(tmp_path, f"a.jsonl{end}", pack(mark + LINES)))[0] == {"text": "one"}
        for read in (formats.read_json_list, formats.read_entries):
            assert read(put(tmp_path, f"a.json{end}", pack(mark + b'["one"]'))) == ["one"]


def test_byte_order_mark_in_the_files_of_an_archive(entries, tmp_path):
    marked = "\ufeff" + SMS
    assert data.load(put_zip(tmp_path, {"SMSSpamCollection": marked})) == SMS
    assert data.load(put(tmp_path, "sms_spam/SMSSpamCollection", marked.encode())) == SMS
    members = {name: content if "README" in name else "\ufeff" + content for name, content in mmlu_members().items()}
    assert data.load(put_tar(tmp_path, members))["dev"][0]["question"] == ITEM["question"]
    put(tmp_path, "sms_spam/SMSSpamCollection", marked.encode() + b"ham\t\xa3\n")
    with pytest.raises(ValueError, match="line 3 is not UTF-8"):
        data.load(tmp_path / "sms_spam/SMSSpamCollection")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("read", [formats.read_text, formats.read_records, formats.read_json_list,
                                  formats.read_entries])  # fmt: skip
def test_utf_16_is_named(tmp_path, encoding, read):
    path = put(tmp_path, "a.jsonl", LINES.decode().encode(encoding))
    with pytest.raises(ValueError, match=f"{path}: it is UTF-16.*; save it as UTF-8"):
        read(path)


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (zstandard.compress, "Zstandard")])
@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("read", [formats.read_text, formats.read_records, formats.read_entries])
def test_a_file_that_is_packed_once_more_or_not_called_so_is_named(tmp_path, pack, name, end, read):
    outside = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[end]
    path = put(tmp_path, f"a.jsonl{end}", outside(pack(LINES)))
    with pytest.raises(ValueError, match=f"{path}: it is packed by {name}, once more or without"):
        read(path)


def test_text_in_another_encoding_is_named(tmp_path):
    path = put(tmp_path, "a.txt", b"caf\xe9")
    with pytest.raises(ValueError, match=rf"{path}: it is not UTF-8 \(byte 0xe9\)"):
        formats.read_text(path)


HALVES = '{"text": "a\\ud83d", "\\uDC00": ["\\ud83d\\ude42", {"b": "\\udead\\ud83d"}], "n": 1}'
MENDED = {"text": "a\ufffd", "\ufffd": ["\U0001f642", {"b": "\ufffd\ufffd"}], "n": 1}


def test_half_a_surrogate_pair_does_not_come_in(entries, tmp_path):
    assert formats.read_records(put(tmp_path, "a.jsonl", HALVES.encode())) == [MENDED]
    assert formats.read_json_list(put(tmp_path, "a.json", f"[{HALVES}]".encode())) == [MENDED]
    assert data.load(put(tmp_path, "instruction-data.json", f"[{HALVES}]".encode())) == [MENDED]
    assert formats.parse_json(HALVES) == formats.parse_json(HALVES.encode()) == MENDED
    passages = data.load(put(tmp_path, "eval/lambada_test.jsonl", HALVES.encode()))
    assert passages == ["a\ufffd"] and passages[0].encode("utf-8")


@pytest.mark.parametrize("values", [[1, 2], [0.5, None], [True, False], [None, None], [["a"], ["b"]], [b"\xff", b""]])
def test_column_that_is_no_text_is_named(entries, tmp_path, values):
    path = put(tmp_path, "eval/wikitext2_raw_test.parquet", b"")
    parquet.write_table(pyarrow.table({"text": values}), path)
    with pytest.raises(ValueError, match=f"{path} cannot be read: record 1: text is .*, not text"):
        data.load(path)
    lines = b'{"text": %d}\n' % len(values) if values[0] else b'{"other": 1}\n'
    with pytest.raises(ValueError, match="lambada_test.jsonl cannot be read: record 1: text is .*, not text"):
        data.load(put(tmp_path, "eval/lambada_test.jsonl", lines))


# --- the readers of chapters 4 and 5 ---------------------------------------------------------------------------------

SMS = 'ham\tSee you at \u00a35 caf\u00e9\nspam\tWIN &amp; "call" now\n'


def make_zip(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def put_zip(tmp_path, members):
    return put(tmp_path, "sms_spam/sms_spam_collection.zip", make_zip(members))


def test_sms_from_the_archive_the_plain_file_and_the_sample(entries, tmp_path, monkeypatch):
    packed = put_zip(tmp_path, {"readme": "about", "SMSSpamCollection": SMS.encode("utf-8")})
    plain = put(tmp_path, "sms_spam/SMSSpamCollection", SMS.replace("\n", "\r\n").encode("utf-8"))
    put(tmp_path, "samples/sms_messages.tsv", SMS.encode("utf-8"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    assert places.is_sample(data.fetch("sms_spam"))
    assert data.load(packed) == data.load(plain) == data.load(data.fetch("sms_spam")) == SMS
    assert sorted(path.name for path in packed.parent.iterdir()) == ["SMSSpamCollection", packed.name]  # none unpacked


def test_sms_archive_is_downloaded_and_where_it_is_gone_the_plain_file(entries, server):
    packed, plain = make_zip({"SMSSpamCollection": SMS}), SMS.encode("utf-8")
    other = replace(entries["sms_spam"].others[0], urls=(server.serve("/plain", body(plain)),), size=len(plain),
                    sha256=hashlib.sha256(plain).hexdigest())  # fmt: skip
    entries["sms_spam"] = replace(entries["sms_spam"], urls=(server.serve("/zip", body(packed), status(404)),),
                                  sha256=hashlib.sha256(packed).hexdigest(), others=(other,))  # fmt: skip
    path = data.fetch("sms_spam")
    assert path == cached("sms_spam/sms_spam_collection.zip") and data.load(path) == SMS
    path.unlink()
    path = data.fetch("sms_spam")
    assert path == cached("sms_spam/SMSSpamCollection") and data.load(path) == SMS


@pytest.mark.parametrize("name", ["smsspamcollection", "data/SMSSpamCollection", "../SMSSpamCollection", "a.txt"])
def test_sms_archive_without_the_member(entries, tmp_path, name):
    path = put_zip(tmp_path, {name: SMS})
    with pytest.raises(ValueError, match="sms_spam_collection.zip cannot be read: the archive holds no SMSSpamColl"):
        data.load(path)
    assert not (tmp_path / "SMSSpamCollection").exists()


def test_sms_archive_that_unpacks_to_too_much(entries, tmp_path):
    path = put_zip(tmp_path, {"SMSSpamCollection": bytes(readers.MEMBER_LIMIT + 1)})
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match="SMSSpamCollection unpacks to more than 10,000,000 bytes"):
        data.load(path)


def test_sms_archive_that_lies_about_its_size(entries, tmp_path):
    size = readers.MEMBER_LIMIT * 2
    path = put_zip(tmp_path, {"SMSSpamCollection": bytes(size)})
    content = path.read_bytes()
    assert content.count(size.to_bytes(4, "little")) == 2
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="cannot be read: BadZipFile"):
        data.load(path)


def test_sms_archive_that_is_cut_off_or_none(entries, tmp_path):
    path = put_zip(tmp_path, {"SMSSpamCollection": SMS})
    for content in (path.read_bytes()[:-30], b"<html>", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read: BadZipFile"):
            data.load(path)


def test_sms_in_another_encoding_names_the_line(entries, tmp_path):
    content = b"ham\tone\nham\ttwo\nspam\tonly \xa35\n"
    for path in (put(tmp_path, "sms_spam/SMSSpamCollection", content),
                 put_zip(tmp_path, {"SMSSpamCollection": content})):  # fmt: skip
        with pytest.raises(ValueError, match=r"cannot be read: line 3 is not UTF-8 \(byte 0xa3\)"):
            data.load(path)


@pytest.mark.parametrize("file", ["instruction-data.json", "instruct/alpaca_data.json", "instruct/alpaca_5000.json",
                                  "samples/instructions.json"])  # fmt: skip
def test_instructions(entries, tmp_path, file):
    found = [{"instruction": "Say caf\u00e9", "input": "", "output": "caf\u00e9"}]
    path = put(tmp_path, file, json.dumps(found, ensure_ascii=False).encode("utf-8"))
    assert data.load(path) == found
    path.write_text('{"instruction": "a"}', encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be read: it holds one dict, not a list"):
        data.load(path)
    path.write_text('[\n{"instruction": "a",}]', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2, column 21"):
        data.load(path)


ROW = '"Which of the two, or ""both""?",one,two,three,four,C\n'
ITEM = {"question": 'Which of the two, or "both"?', "choices": ["one", "two", "three", "four"], "gold": 2}


def mmlu_members(folder="data", subjects=("first_aid", "logic")):
    members = {f"{folder}/{split}/{subject}_{split}.csv": ROW * (1 + (split == "test"))
               for split in ("dev", "val", "test") for subject in subjects}  # fmt: skip
    return {f"{folder}/README.txt": "about", f"{folder}/auxiliary_train/race.csv": "no,row"} | members


def put_tar(tmp_path, members, file="eval/mmlu_data.tar"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if file.endswith(".gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                archive.addfile(info)
            else:
                content = content.encode("utf-8") if isinstance(content, str) else content
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return put(tmp_path, file, packed.getvalue())


@pytest.mark.parametrize(("file", "folder"), [("eval/mmlu_data.tar", "data"), ("eval/mmlu.tar.gz", "mmlu"),
                                              ("eval/mmlu_data.tar", "./data")])  # fmt: skip
def test_mmlu(entries, tmp_path, file, folder):
    content = data.load(put_tar(tmp_path, mmlu_members(folder), file))
    assert {split: len(items) for split, items in content.items()} == {"dev": 2, "val": 2, "test": 4}
    assert content["dev"] == [{"subject": "first_aid"} | ITEM, {"subject": "logic"} | ITEM]


def test_mmlu_archive_with_paths_that_leave_the_folder(entries, tmp_path, monkeypatch):
    names = ("../dev/evil_dev.csv", "/data/dev/evil_dev.csv", "data/../../dev/evil_dev.csv", "data/dev/../evil_dev.csv",
             "data/dev/._evil_dev.csv", "data/dev/evil_test.csv", "data/train/evil_train.csv",
             "a/data/dev/evil_dev.csv")  # fmt: skip
    links = {"data/dev/link_dev.csv": (tarfile.SYMTYPE, "/etc/hostname"),
             "data/dev/hard_dev.csv": (tarfile.LNKTYPE, "x"),
             "data/dev/folder_dev.csv": (tarfile.DIRTYPE, "")}  # fmt: skip
    evil = dict.fromkeys(names, ROW) | links
    path = put_tar(tmp_path, evil | mmlu_members())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    content = data.load(path)
    assert {item["subject"] for items in content.values() for item in items} == {"first_aid", "logic"}
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="no dev questions of any subject"):
        data.load(put_tar(tmp_path, evil))


def test_mmlu_archive_that_is_not_whole(entries, tmp_path):
    path = put_tar(tmp_path, mmlu_members())
    whole = path.read_bytes()
    ends = range(512, len(mmlu_members()) * 1024 - 1, 512)  # each member: a block that names it, a block of content
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="mmlu_data.tar cannot be read"):
            data.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read: ReadError"):
        data.load(path)
    packed = put_tar(tmp_path, mmlu_members(), "eval/mmlu.tar.gz")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ValueError, match="mmlu.tar.gz cannot be read"):
        data.load(packed)


@pytest.mark.parametrize("row", ["one,two,three,four,C\n", "q,one,two,three,four,E\n", "q,1,2,3,4,five,A\n", "\n",
                                 "q,1,2,3,4,\n"])  # fmt: skip
def test_mmlu_row_that_is_no_question(entries, tmp_path, row):
    path = put_tar(tmp_path, mmlu_members() | {"data/test/logic_test.csv": ROW + row})
    with pytest.raises(ValueError, match="data/test/logic_test.csv, row 2 is no question"):
        data.load(path)


def test_mmlu_member_that_is_too_large(entries, tmp_path):
    path = put_tar(tmp_path, mmlu_members() | {"data/val/logic_val.csv": bytes(readers.MEMBER_LIMIT + 1)})
    with pytest.raises(ValueError, match="data/val/logic_val.csv unpacks to more than"):
        data.load(path)


def test_arc_with_letters_numbers_and_other_counts(entries, tmp_path):
    rows = [("ABCD", "D"), ("1234", "2"), ("ABCDE", "E"), ("ABC", "A")]
    records = [{"id": "x", "question": "Why?", "choices": {"text": list("wxyzv"[: len(labels)]), "label": list(labels)},
                "answerKey": key} for labels, key in rows]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records).encode("utf-8")
    expected = [{"query": "Question: Why?\nAnswer:", "choices": list("wxyzv"[: len(labels)]), "gold": gold}
                for (labels, _), gold in zip(rows, (3, 1, 4, 0))]  # fmt: skip
    assert data.load(put(tmp_path, "samples/arc_easy.jsonl", lines)) == expected
    assert data.load(put(tmp_path, "eval/arc_easy_val.jsonl.zst", zstandard.compress(lines))) == expected
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "eval" / "arc_easy_val.parquet")
    assert data.load(tmp_path / "eval" / "arc_easy_val.parquet") == expected
    with pytest.raises(ValueError, match="arc_easy.jsonl cannot be read"):  # a key that no choice has
        data.load(put(tmp_path, "samples/arc_easy.jsonl", lines.replace(b'"answerKey": "D"', b'"answerKey": "9"')))


PIQA = [{"goal": "Dry a shoe.", "sol1": "Use paper.", "sol2": "Use ice."},
        {"goal": "Cool soup", "sol1": "a flask ", "sol2": "a dish"}]  # fmt: skip


def as_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_piqa_from_the_archive_and_from_records(entries, tmp_path):
    expected = [{"query": f"Question: {r['goal']}\nAnswer:", "choices": [r["sol1"], r["sol2"]], "gold": gold}
                for r, gold in zip(PIQA, (0, 1))]  # fmt: skip
    members = {"physicaliqa-train-dev/dev.jsonl": as_lines(PIQA), "physicaliqa-train-dev/dev-labels.lst": "0\n1\n"}
    assert data.load(put(tmp_path, "eval/physicaliqa-train-dev.zip", make_zip(members))) == expected
    records = as_lines(r | {"label": gold} for r, gold in zip(PIQA, (0, 1))).encode()
    assert data.load(put(tmp_path, "samples/piqa.jsonl", records)) == expected
    assert data.load(put(tmp_path, "eval/piqa_val.jsonl.zst", zstandard.compress(records))) == expected


@pytest.mark.parametrize("labels", ["0\n", "0\n1\n0\n", "0\nx\n", None])
def test_piqa_whose_labels_do_not_fit(entries, tmp_path, labels):
    members = {"physicaliqa-train-dev/dev.jsonl": as_lines(PIQA)}
    members |= {} if labels is None else {"physicaliqa-train-dev/dev-labels.lst": labels}
    with pytest.raises(ValueError, match="physicaliqa-train-dev.zip cannot be read"):
        data.load(put(tmp_path, "eval/physicaliqa-train-dev.zip", make_zip(members)))


def pairs_of(paradigm, term, n=2):
    return [{"sentence_good": f"{paradigm} {i} is.", "sentence_bad": f"{paradigm} {i} are.", "UID": paradigm,
             "linguistics_term": term, "pairID": str(i)} for i in range(n)]  # fmt: skip


def test_blimp_from_the_archive_and_from_records(entries, tmp_path):
    one, two = pairs_of("a_1", "subject_verb_agreement"), pairs_of("b", "s-selection")
    members = {"data/b.jsonl": as_lines(two), "data/a_1.jsonl": as_lines(one), "__MACOSX/data/._b.jsonl": b"\xff",
               "data/.DS_Store": b"\xff"}  # fmt: skip
    found = data.load(put(tmp_path, "eval/BLiMP.zip", make_zip(members)))
    assert [pair["good"] for pair in found] == ["a_1 0 is.", "b 0 is.", "a_1 1 is.", "b 1 is."]
    assert [pair["bad"] for pair in found] == ["a_1 0 are.", "b 0 are.", "a_1 1 are.", "b 1 are."]
    assert {pair["paradigm"]: pair["phenomenon"] for pair in found} == {
        "a_1": "subject verb agreement", "b": "argument structure"}  # fmt: skip
    assert data.load(put(tmp_path, "samples/blimp.jsonl", as_lines(one + two).encode())) == found
    with pytest.raises(ValueError, match="not all paradigms have equally many pairs"):
        data.load(put(tmp_path, "samples/blimp.jsonl", as_lines(one + two[:1]).encode()))


def test_conversations_in_the_forms_of_their_publishers(entries, tmp_path):
    """Taskmaster, Topical-Chat, records that have their turns together, and OASST1's trees of messages."""
    turns = [{"speaker": "user", "text": "Tea"}, {"speaker": "assistant", "text": "Yes"}]
    taskmaster = [{"conversation_id": "a", "utterances": turns}, {"conversation_id": "b", "utterances": turns[:1]}]
    file = "conversations/taskmaster4_data_00.json"
    assert data.load(put(tmp_path, file, json.dumps(taskmaster).encode())) == taskmaster
    topical = {"t_1": {"content": [{"agent": "agent_1", "message": "Tea"}], "article_url": "x"}}
    file = "conversations/topical_chat_valid_freq.json"
    assert data.load(put(tmp_path, file, json.dumps(topical).encode())) == [topical["t_1"]]
    records = [{"messages": [{"role": "user", "content": "Tea"}]}]
    assert data.load(put(tmp_path, "samples/airline.jsonl", as_lines(records).encode())) == records
    with pytest.raises(ValueError, match="record 1 has no list of turns, but question"):
        data.load(put(tmp_path, "samples/airline.jsonl", b'{"question": "Tea?"}\n'))


def test_oasst_threads_follow_the_best_replies_in_english(entries, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [("a", None, "prompter", "Hi", "en", None), ("b", "a", "assistant", "worse", "en", 1), ("d", "b", "prompter",
            "lost", "en", 0), ("c", "a", "assistant", "better", "en", 0), ("e", "c", "prompter", "More", "en", None),
            ("f", None, "prompter", "Hola", "es", None)]  # fmt: skip
    names = ("message_id", "parent_id", "role", "text", "lang", "rank")
    file = tmp_path / "conversations/oasst1_validation.parquet"
    file.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(zip(names, row)) for row in rows]), file)
    [found] = data.load(file)
    said = [("prompter", "Hi"), ("assistant", "better"), ("prompter", "More")]
    assert [(turn["role"], turn["content"]) for turn in found["messages"]] == said
