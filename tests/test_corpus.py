"""The corpus pipeline: each rule, each format, each way in which input is bad, duplicates, kill and resume, the Hub."""

import errno
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import closing
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "03_gpt"))

import corpus_input  # noqa: E402
import corpus_output  # noqa: E402
import corpus_rules as rules  # noqa: E402
import prepare_corpus as pipeline  # noqa: E402
from prepare_corpus import CorpusError, Settings, open_shards, prepare, read_manifest  # noqa: E402

from shared import data  # noqa: E402
from shared.files import sha256_of  # noqa: E402
from shared.tokenizer import BPETokenizer, load_tokenizer  # noqa: E402

WORDS = """time river stone winter letter garden engine paper window music bread harbour mountain silver question
summer market lesson number animal station doctor village forest colour answer picture bottle morning island""".split()


class Killed(BaseException):
    """What stands in for kill -9 at a chosen moment."""


def make_text(seed, words=120):
    """Sentences of random words: two seeds share no five words in a row."""
    rng = random.Random(seed)
    lines = [[*rng.choices(WORDS, k=10), str(rng.randrange(10**6))] for _ in range(words // 10)]
    return "\n".join(" ".join(line).capitalize() + "." for line in lines)


TEXTS = [make_text(i, 60 + i % 90) for i in range(120)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a small encoding, so that no test needs GPT-2's files."""
    folder = tmp_path_factory.mktemp("bpe") / "small"
    BPETokenizer().train(" ".join(TEXTS[:20]), 400).save(folder)
    return folder


@pytest.fixture
def make(tmp_path, tokenizer):
    """make(source, ..., name="out", **settings) -> the folder of a corpus."""

    def make(*sources, name="out", workers=1, keep=True, **settings):
        settings = {"tokenizer": str(tokenizer), "validation": 0.1, "shard_tokens": 2000} | settings
        prepare(tmp_path / name, Settings(tuple(map(str, sources)), **settings), workers, keep, progress=False)
        return tmp_path / name

    return make


def write_jsonl(path, texts=TEXTS, **meta):
    lines = [json.dumps({"text": text} | ({"meta": meta} if meta else {})) for text in texts]
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = ("\n".join(lines) + "\n").encode()
    pack = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(raw))
    return path


def documents_in(folder, split=None):
    """The documents of a corpus, decoded."""
    encoding = BPETokenizer().load(folder / "tokenizer").to_tiktoken("test")
    texts = []
    for name in [split] if split else ["train", "validation"]:
        ids = np.concatenate([*open_shards(folder, name), np.empty(0, np.uint16)])
        ends = np.flatnonzero(ids == encoding.eot_token)
        assert not len(ids) or ends[-1] == len(ids) - 1, "every document ends with the end-of-text token"
        texts += [encoding.decode(part.tolist()) for part in np.split(ids, ends + 1)[:-1] for part in [part[:-1]]]
    return texts


def counts_of(folder):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return sum((Counter(counts) for counts in report["sources"].values()), Counter())


def contents(folder):
    """File name -> bytes, of all that must be the same however a run went."""
    files = {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    report = json.loads(files.pop("report.json"))
    del report["seconds"]
    return files | {"report.json": report}


def snapshot(folder):
    """Name -> bytes of all files, links as what they point to, folders as None."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            for name, path in paths.items()}  # fmt: skip


# --- one text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step, text, expected", [
    (rules.repair_encoding, "cafÃ© â€œone\u201d â€” fin", "café “one” — fin".replace("”", "\u201d")),
    (rules.repair_encoding, "let\xe2\x80\x94us; ð\x9f\x98\x80", "let—us; \U0001f600"),
    (rules.repair_encoding, "“MAÇÔ, „MENÜ“, Â«, pâté — fin", "“MAÇÔ, „MENÜ“, «, pâté — fin"),
    (rules.repair_encoding, "half a pair \ud83d here", "half a pair \ufffd here"),
    (rules.strip_html, "<p class='x'>One<br/>two</p><b>bold</b>", "\nOne\ntwo\nbold"),
    (rules.strip_html, "a<script type=x>if (a<b) {}</script>b<!-- c -->d<STYLE>p{}</style >e", "abde"),
    (rules.strip_html, "a < b > c, x<y, <T> and List<int>; R&D", "a < b > c, x<y, <T> and List<int>; R&D"),
    (rules.strip_html, "AT&amp;T &#8211; &quot;&lt;b&gt;&quot; &nosuch;", 'AT&T – "<b>" &nosuch;'),
    (rules.strip_html, "<script>never closed", "<script>never closed"),
    (rules.normalize_unicode, "cafe\u0301", "café"),
    (rules.strip_control_characters, "a\x00b\x1b\tc\r\nd\re\x7f", "ab\tc\nd\ne"),
    (rules.strip_control_characters, "\ufeffso\xadft\u200b hy\xa0phen\x85 \u200dé", "soft hy phen \u200dé"),
    (rules.collapse_blank_lines, "\n\n a \t\n\n\n\nb  c\n\nd\n", "a\n\nb  c\n\nd"),
    (rules.collapse_blank_lines, "a" + " " * 500 + "b", "a b"),
])  # fmt: skip
def test_cleaning_step(step, text, expected):
    assert step(text) == expected
    assert step("Plain text,\nwith a second line.") == "Plain text,\nwith a second line."


def test_cleaning_takes_linear_time():
    for text in ("<script>" * 50_000, "<!--" * 50_000, "<a " * 50_000, "&" * 100_000, "â€" * 50_000, "\n \n" * 50_000):
        began = time.process_time()
        rules.clean(text)
        assert time.process_time() - began < 1, text[:10]


def test_cleaning_names_what_changed():
    assert rules.clean("<b>cafe\u0301</b>") == ("café", ["strip_html", "normalize_unicode"])
    assert rules.clean("plain") == ("plain", [])


@pytest.mark.parametrize("rule, dropped, kept", [
    (rules.too_short, "x" * 199, "x" * 200),
    (rules.broken_encoding, "abc\ufffd " * 40, "abcd " * 200 + "\ufffd"),
    (rules.few_letters, "17.5 | 23.9 | --- a" * 20, TEXTS[0]),
    (rules.few_letters, "★" * 150 + "это слово", "это русский текст, и буквы его считаются" * 5),
    (rules.repeated_lines, "Home\nAbout\nContact\n" * 20, TEXTS[0] + "\n\n\n" + TEXTS[1]),
])  # fmt: skip
def test_filter(rule, dropped, kept):
    assert rule(dropped) and not rule(kept)
    assert rules.why_dropped(dropped, {rule.__name__: rule}) == rule.__name__
    assert rules.why_dropped(kept, {rule.__name__: rule}) is None


HINDI = "गाँव के स्कूल में बच्चे हर सुबह प्रार्थना के बाद अपनी किताबें खोलते हैं और मास्टर जी से नई कहानियाँ सुनते हैं।"
TAMIL = "காலையில் சூரியன் உதித்ததும் மீனவர்கள் தங்கள் படகுகளை எடுத்துக்கொண்டு கடலுக்குச் செல்கிறார்கள், மாலையில் திரும்புகிறார்கள்."
BENGALI = "বর্ষাকালে নদীর জল বেড়ে গেলে গ্রামের মানুষ নৌকায় করে বাজারে যায় এবং সন্ধ্যায় বাড়ি ফিরে আসে।"
MALAYALAM = "മഴ പെയ്തു തുടങ്ങിയപ്പോൾ കുട്ടികൾ മുറ്റത്തുനിന്ന് വീട്ടിലേക്ക് ഓടിക്കയറി, അമ്മ അവർക്ക് ചൂടുള്ള ചായ കൊടുത്തു."
BURMESE = "ကျွန်တော်တို့ရွာမှာ မိုးရာသီရောက်ရင် လယ်သမားတွေ မနက်စောစောထပြီး လယ်ထဲကို သွားကြတယ်။"
ARABIC = "ذَهَبَ الوَلَدُ إِلَى المَدْرَسَةِ فِي الصَّبَاحِ وَقَرَأَ كِتَابًا جَدِيدًا مَعَ أَصْدِقَائِهِ."


@pytest.mark.parametrize("sentence", [HINDI, TAMIL, BENGALI, MALAYALAM, BURMESE, ARABIC])
def test_marks_belong_to_the_letters(sentence):
    text = "\n".join(f"{sentence} {i}" for i in range(10))
    cleaned, _ = rules.clean(text)
    assert rules.why_dropped(cleaned) is None
    assert rules.few_letters(cleaned + " | 12.5 — 13.7 |" * 80), "numbers are still no letters"


def test_signs_without_letters_are_not_kept_for_their_marks():
    assert rules.few_letters("❤️ ✌️ " * 100) and rules.few_letters("12️ " * 100)


def test_an_empty_text_breaks_nothing():
    assert rules.clean("") == ("", [])
    assert rules.why_dropped("") == "too_short"
    assert rules.minhash("").shape == rules.minhash("one two").shape == (128,)


# --- duplicates -------------------------------------------------------------------------------------------------------


def jaccard(one, other):
    one, other = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)}
                  for words in (rules.only_words(one).split(), rules.only_words(other).split()))  # fmt: skip
    return len(one & other) / len(one | other)


def edited(text, changes, rng):
    words = text.split(" ")
    for i in rng.sample(range(len(words)), changes):
        words[i] = rng.choice(["edited", "otherwise", "instead"])
    return " ".join(words)


def test_shingles_are_equal_where_five_words_are():
    """As many different hashes as there are different shingles, wherever in a text they stand."""
    text = make_text(1, 2000) + " Ünïcödé — “wörds”, too. " + make_text(1, 400)
    words = rules.only_words(text).split()
    hashes = rules.word_hashes(text)
    assert len(hashes) == len(words)
    assert len(set(zip(words, hashes.tolist()))) == len(set(words)) == len(set(hashes.tolist()))
    shingles = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
    hashes = rules.shingle_hashes(text).tolist()
    assert len(set(zip(shingles, hashes))) == len(set(shingles)) == len(set(hashes)) < len(hashes) == len(shingles)


def test_signatures_estimate_the_jaccard_index():
    rng, errors = random.Random(0), []
    for i in range(150):
        text = make_text(1000 + i, rng.choice([100, 300, 1000]))
        other = edited(text, rng.randrange(1, 12), rng)
        one, two = (rules.short_signature(rules.minhash(t)) for t in (text, other))
        errors.append(rules.similarity(one, two) - jaccard(text, other))
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.06
    same = rules.minhash(text.upper().replace(".", " —"))
    assert (same == rules.minhash(text)).all(), "case and punctuation do not count"


def test_near_duplicates_recall_and_precision(make, tmp_path):
    """Originals and a copy of each: very alike (Jaccard index >= 0.88), or alike only in part (<= 0.7)."""
    rng, texts, similarity = random.Random(0), [], {}
    for i in range(400):
        length = rng.choice([150, 300, 500])
        texts.append(make_text(5000 + i, length))
        copy = edited(texts[-1], rng.choice([1, 2, 3, length // 40, length // 25, length // 14, length // 10]), rng)
        similarity[copy] = jaccard(texts[-1], copy)
    alike = {copy for copy, index in similarity.items() if index >= 0.88}
    copies = [copy for copy, index in similarity.items() if index >= 0.88 or index <= 0.7]
    assert len(alike) > 100 and len(copies) - len(alike) > 100, "enough to measure with"
    assert min(similarity[copy] for copy in alike) < 0.9 and max(set(similarity.values()) - {1}) > 0.97
    folder = make(write_jsonl(tmp_path / "in.jsonl", texts + copies), near=0.8)
    gone = set(texts + copies) - set(documents_in(folder))
    found = len(gone & alike)
    print(f"{len(alike)} planted: recall {found / len(alike):.3f}, precision {found / len(gone):.3f}")
    assert found >= 0.97 * len(alike), "recall"
    assert found >= 0.99 * len(gone), "precision"
    assert counts_of(folder)["near duplicate"] == len(gone)


def test_exact_duplicates_also_without_near(make, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS[:30] + [TEXTS[3] + "\n\n\n", TEXTS[5].replace("\n", " \r\n")])
    folder = make(source, near=None)
    assert sorted(documents_in(folder)) == sorted(TEXTS[:30])
    assert counts_of(folder)["exact duplicate"] == 2


def test_duplicates_are_found_across_batches_and_commits(make, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH_RECORDS", 7)
    texts = [make_text(i, 300) for i in range(40)]
    near = [edited(text, 1, random.Random(i)) for i, text in enumerate(texts)]
    folder = make(write_jsonl(tmp_path / "in.jsonl", texts + near + texts), shard_tokens=2000)
    assert sorted(documents_in(folder)) == sorted(texts)
    assert counts_of(folder)["exact duplicate"] == counts_of(folder)["near duplicate"] == len(texts)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_every_format_gives_the_same_corpus(make, tmp_path):
    table = pyarrow.table({"text": TEXTS, "meta": [{"redpajama_set_name": "RedPajamaC4"}] * len(TEXTS), "n": TEXTS})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(TEXTS), encoding="utf-8")
    sources = [write_jsonl(tmp_path / f"a.jsonl{ending}") for ending in ("", ".gz", ".zst")]
    sources += [tmp_path / "a.parquet", tmp_path / "a.txt"]
    made = [make(source, name=f"out{i}") for i, source in enumerate(sources)]
    assert sorted(documents_in(made[0])) == sorted(TEXTS)
    for folder in made[1:]:
        assert read_manifest(folder)["splits"] == read_manifest(made[0])["splits"]
    assert set(json.loads((made[3] / "report.json").read_text())["sources"]) == {"RedPajamaC4"}


def test_slimpajama_and_redpajama_records(make, tmp_path):
    """SlimPajama's layout of folders, records with a set name; RedPajama's records without `meta`, or a longer one."""
    slim, named = tmp_path / "slim", "redpajama_set_name"
    write_jsonl(slim / "train/chunk1/example_train_0.jsonl.zst", TEXTS[:40], **{named: "RedPajamaC4"})
    write_jsonl(slim / "train/chunk2/example_train_1.jsonl.zst", TEXTS[40:60], **{named: "RedPajamaBook"})
    write_jsonl(slim / "test/chunk1/example_holdout_0.jsonl.zst", TEXTS[60:70])
    flat = [json.dumps({"text": t, "pred_label": "__label__wiki", "source": "cc/en_head_0000"}) for t in TEXTS[70:90]]
    (slim / "cc_012.jsonl").write_text("\n".join(flat), encoding="utf-8")
    folder = make(slim, skip=("example_holdout_*",))
    sources = json.loads((folder / "report.json").read_text())["sources"]
    assert {name: counts["kept"] for name, counts in sources.items()} == {
        "RedPajamaC4": 40, "RedPajamaBook": 20, "cc": 20}  # fmt: skip
    files = read_manifest(folder)["source"]["files"]
    assert files[0] == "slim/cc_012.jsonl" and files[-1] == "slim/train/chunk2/example_train_1.jsonl.zst"


def test_keep_meta_compares_whole_words(make, tmp_path):
    licences = ["CC BY 4.0 (OpenStax)", "CC BY-SA 4.0", "CC-BY", "CC-BY-SA", "Public domain (US)", None, "ODC-BY"]
    records = [{"text": text, "meta": {"licence": licence}} for text, licence in zip(TEXTS, licences)]
    records.append({"text": TEXTS[9]})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    wanted = tuple(("licence", beginning) for beginning in ("CC BY", "CC-BY", "Public domain"))
    folder = make(tmp_path / "a.jsonl", keep_meta=wanted)
    assert sorted(documents_in(folder)) == sorted([TEXTS[0], TEXTS[2], TEXTS[4]])
    assert counts_of(folder)["dropped: other meta"] == 5


def test_bad_input_is_counted_and_the_rest_is_kept(make, tmp_path):
    packed = write_jsonl(tmp_path / "x/x.jsonl.zst", TEXTS[:60] + [make_text(i, 600) for i in range(100)]).read_bytes()
    (tmp_path / "a_cut.jsonl.zst").write_bytes(packed[: len(packed) * 2 // 3])
    (tmp_path / "b_cut.jsonl.gz").write_bytes(write_jsonl(tmp_path / "x/x.jsonl.gz", TEXTS[60:70]).read_bytes()[:-20])
    (tmp_path / "c_no.jsonl.zst").write_bytes(b"this is not Zstandard data")
    (tmp_path / "d_empty.jsonl.zst").write_bytes(b"")
    one, two = (text.replace("\n", " ").encode() for text in TEXTS[81:83])
    lines = [b'{"text": "broken', b'{"txt": "none"}', b'{"text": 5}', b"[1]", b"17", b"[" * 100_000, b'{"text": null}',
             b"", b'{"text": "' + one + b'\xff"}', b'{"text": "\\ud83d' + two + b'"}\r',
             json.dumps({"text": TEXTS[80]}).encode()]  # fmt: skip
    (tmp_path / "e_lines.jsonl").write_bytes(b"\n".join(lines))
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), tmp_path / "f_other.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [None, TEXTS[83]]}), tmp_path / "g_null.parquet")
    (tmp_path / "h_no.parquet").write_bytes(b"PAR1 nothing PAR1")
    folder = make(*sorted(tmp_path.glob("[a-h]_*")))
    kept = documents_in(folder)
    assert set(TEXTS[:69]) < set(kept), "what came before the cut is used"
    assert {TEXTS[80], TEXTS[83]} < set(kept)
    assert any("\ufffd" in text for text in kept), "a byte that is no UTF-8 costs a character, not the document"
    counts = counts_of(folder)
    assert counts["bad: no JSON"] == 2
    assert counts["bad: no text"] == 6
    assert counts[f"bad: {corpus_input.UNREADABLE}"] == 6
    problems = "\n".join(json.loads((folder / "report.json").read_text())["problems"])
    for part in ("f_other.parquet, record 0", "no column text, but content", "a_cut.jsonl.zst", "ends in the middle",
                 "d_empty.jsonl.zst", "the file is empty"):  # fmt: skip
        assert part in problems
    assert not (folder / "state.db").exists()


def test_a_tokenizer_in_a_source_is_no_text(make, tmp_path, capsys):
    """So a corpus may lie within its source: the same command, given again, says that it is done."""
    source = tmp_path / "texts"
    source.mkdir()
    write_jsonl(source / "a.jsonl", TEXTS[:30])
    (source / "merges.txt").write_text(TEXTS[31], encoding="utf-8")  # not beside a vocab.json
    command = ["--source", str(source), "--out", str(source / "corpus"), "--train-tokenizer", "300", "--workers", "1"]
    for _ in range(2):
        assert pipeline.main(command) == 0
    assert "corpus is complete" in capsys.readouterr().out
    assert sorted(documents_in(source / "corpus")) == sorted([*TEXTS[:30], TEXTS[31]])
    files, _ = corpus_input.find_files([source])
    assert [file.name for file in files] == ["texts/a.jsonl", "texts/merges.txt"]


def test_a_line_without_end_is_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_input, "LONGEST_RECORD", 2**20)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", 1) as file:
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b'\n{"text": "after"}')
    tracemalloc.start()
    records = list(corpus_input.read_records(tmp_path / "a.jsonl.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert records[0].kind == "a line that is too long" and records[1:] == [b'{"text": "after"}']
    assert peak < 2**23


def test_a_long_text_file_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_input, "TEXT_PIECE", 1000)
    lines = [f"line {i} of the text" for i in range(300)]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    pieces = [record["text"] for record in corpus_input.read_records(tmp_path / "a.txt")]
    assert "\n".join(pieces).split("\n") == lines and 5 < len(pieces) < 9


@pytest.mark.parametrize("ending", ["jsonl.zst", "parquet", "txt"])
def test_reading_goes_on_at_any_record(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), path, row_group_size=25)
    elif ending == "txt":
        path.write_text("\n<|endoftext|>\n".join(TEXTS), encoding="utf-8")
    else:
        write_jsonl(path)
    whole = list(corpus_input.read_records(path))
    assert len(whole) == len(TEXTS)
    for start in (1, 24, 25, 26, 75, 119, 120):
        assert list(corpus_input.read_records(path, start)) == whole[start:]


# --- writing ----------------------------------------------------------------------------------------------------------


def test_tokens_are_tiktokens(make, tmp_path, tokenizer):
    """Shard by shard the ids that tiktoken gives, and the manifest's numbers are true."""
    texts = [*TEXTS, TEXTS[0] + " <|endoftext|> in the middle"]
    folder = make(write_jsonl(tmp_path / "a.jsonl", texts), validation=0, near=None)
    encoding = BPETokenizer().load(tokenizer).to_tiktoken("x")
    expected = [id for ids in encoding.encode_ordinary_batch(texts) for id in [*ids, encoding.eot_token]]
    shards, entry = open_shards(folder, "train"), read_manifest(folder)["splits"]["train"]
    assert np.concatenate(shards).tolist() == expected and shards[0].dtype == np.uint16
    assert entry["tokens"] == len(expected) and entry["documents"] == len(texts)
    assert entry["text_bytes"] == sum(len(text.encode()) for text in texts)
    for shard, ids in zip(entry["shards"], shards):
        raw = (folder / shard["file"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(raw).hexdigest() and len(raw) == 2 * shard["tokens"] == 2 * len(ids)
    assert all(shard["tokens"] >= 2000 for shard in entry["shards"][:-1]) and len(shards) > 3
    manifest = read_manifest(folder)
    assert manifest["tokenizer"] == {
        "name": "small", "n_vocab": 400, "eot_token": 399,
        "sha256": sha256_of(folder / "tokenizer" / "merges.txt")}  # fmt: skip
    assert open_shards(folder, "validation") == []


def test_gpt2_tokens(make, tmp_path):
    with_gpt2 = make(write_jsonl(tmp_path / "a.jsonl", TEXTS[:9]), tokenizer="gpt2", validation=0)
    encoding = load_tokenizer("gpt2")  # or the bundled one where GPT-2's files are not at hand
    assert read_manifest(with_gpt2)["tokenizer"]["name"] == encoding.name
    ids = np.concatenate(open_shards(with_gpt2, "train")).tolist()
    assert ids == [id for text in TEXTS[:9] for id in [*encoding.encode_ordinary(text), encoding.eot_token]]
    assert load_tokenizer(with_gpt2 / "tokenizer")._mergeable_ranks == encoding._mergeable_ranks


def test_split_never_moves(make, tmp_path):
    """Other order, other neighbours, another limit: each document stays in its split."""
    first = make(write_jsonl(tmp_path / "a.jsonl"), name="first")
    others = [make_text(i) for i in range(900, 940)]
    second = make(write_jsonl(tmp_path / "b.jsonl.gz", others[:20] + TEXTS[::-1] + others[20:]), name="second")
    third = make(write_jsonl(tmp_path / "c.jsonl", TEXTS[60:]), name="third", limit=10_000)
    held_out = set(documents_in(first, "validation"))
    assert 3 <= len(held_out) <= 25
    assert held_out == set(documents_in(second, "validation")) & set(TEXTS)
    assert set(documents_in(third, "validation")) <= held_out
    assert not set(documents_in(third, "train")) & held_out
    keys = [rules.document_hash(str(i)) for i in range(20_000)]
    assert 0.04 < np.mean([rules.in_validation(key, 0.05) for key in keys]) < 0.06
    assert all(rules.in_validation(key, 1) for key in keys) and not any(rules.in_validation(key, 0) for key in keys)


def test_limit_by_text_bytes(make, tmp_path):
    folder = make(write_jsonl(tmp_path / "a.jsonl"), limit=20_000)
    size = sum(len(text.encode()) for text in documents_in(folder))
    assert 20_000 - max(map(len, TEXTS)) < size <= 20_000
    assert size == sum(read_manifest(folder)["splits"][split]["text_bytes"] for split in ("train", "validation"))


def test_a_trained_tokenizer(make, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl")
    folder = make(source, tokenizer="train 300")
    assert sorted(documents_in(folder)) == sorted(TEXTS)
    assert read_manifest(folder)["tokenizer"] | {"sha256": ""} == {
        "name": "bpe-300", "n_vocab": 300, "eot_token": 299, "sha256": ""}  # fmt: skip
    text = pipeline.tokenizer_text(corpus_input.find_files([source])[0], Settings((str(source),), validation=0.1))
    assert not any(held_out in text for held_out in documents_in(folder, "validation"))


def test_workers_change_nothing(make, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS * 2 + [edited(t, 1, random.Random(0)) for t in TEXTS])
    assert contents(make(source, name="one")) == contents(make(source, name="two", workers=2))


def test_parts_merge(make, tmp_path):
    for i in range(5):
        write_jsonl(tmp_path / f"in/a_{i}.jsonl.zst", TEXTS[i::5])
    whole = make(tmp_path / "in", name="whole")
    parts = [make(tmp_path / "in", name=f"part{i}", shard=f"{i}/3") for i in range(3)]
    assert pipeline.main(["--merge", *map(str, parts), "--out", str(tmp_path / "merged")]) == 0
    merged = tmp_path / "merged"
    assert sorted(documents_in(merged)) == sorted(documents_in(whole))
    assert set(documents_in(merged, "validation")) == set(documents_in(whole, "validation"))
    for split in ("train", "validation"):
        one, other = read_manifest(whole)["splits"][split], read_manifest(merged)["splits"][split]
        assert {k: one[k] for k in corpus_output.COUNTED} == {k: other[k] for k in corpus_output.COUNTED}
        assert len(other["shards"]) == len(list(merged.glob(f"{split}_*.bin")))
    assert counts_of(merged) == counts_of(whole)
    assert sorted(read_manifest(merged)["source"]["files"]) == read_manifest(whole)["source"]["files"]
    with pytest.raises(CorpusError, match="not empty"):
        corpus_output.merge(parts, merged)
    with pytest.raises(CorpusError, match="names a folder twice"):
        corpus_output.merge([parts[0], parts[1], parts[0].parent / "." / parts[0].name], tmp_path / "m2")
    with pytest.raises(CorpusError, match="another tokenizer"):
        corpus_output.merge([whole, make(tmp_path / "in", name="o", tokenizer="train 300")], tmp_path / "m2")


def test_what_reads_a_corpus_is_told_what_is_wrong(make, tmp_path):
    folder = make(write_jsonl(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="must be one of train, validation"):
        open_shards(folder, "test")
    shard = folder / "train_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train_00001.bin has [\d,]+ bytes; the manifest says"):
        open_shards(folder, "train")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="train_00001.bin is missing"):
        open_shards(folder, "train")
    (folder / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="damaged, or not a corpus manifest"):
        read_manifest(folder)
    with pytest.raises(FileNotFoundError, match="prepare_corpus.py makes it"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("change", [
    {"files": None}, {"inputs": None}, {"inputs": [{}]}, {"settings": []}, {"source": None}, {"tokenizer": 1},
    {"splits": {"train": {"shards": []}, "validation": {"shards": []}}}, "[" * 100_000,
])  # fmt: skip
def test_a_manifest_of_another_form(finished, tmp_path, capsys, change):
    folder, call = finished
    manifest = folder / "manifest.json"
    known = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(change if isinstance(change, str) else json.dumps(known | change), encoding="utf-8")
    before = snapshot(folder)
    refused(call, "is damaged, or not a corpus manifest", capsys)
    refused(["--merge", str(folder), "--out", str(tmp_path / "merged")], "is damaged, or not a corpus manifest", capsys)
    assert snapshot(folder) == before and not (tmp_path / "merged").exists()


# --- what a folder holds: restart, identity, checksums ----------------------------------------------------------------


@pytest.fixture
def finished(make, tmp_path, tokenizer):
    """(folder of a finished corpus, the arguments of the command that made it)."""
    source = write_jsonl(tmp_path / "a.jsonl")
    call = ["--source", str(source), "--tokenizer", str(tokenizer), "--validation", "0.1", "--shard-tokens", "2000",
            "--workers", "1", "--out", str(tmp_path / "out")]  # fmt: skip
    return make(source), call


def refused(call, message, capsys, status=1):
    """The command ends with `message` on one line."""
    capsys.readouterr()
    assert pipeline.main(call) == status
    output = capsys.readouterr().out
    assert message in output and len(output.splitlines()) == 1, output
    return output


@pytest.mark.parametrize("change, message", [
    (["--source", "nowhere.jsonl"], "there is no such file or folder"),
    (["--source", "http://127.0.0.1:9/a.jsonl"], "http://127.0.0.1:9/a.jsonl"),
    (["--shard", "5/9"], "there are not so many files"),
    (["--tokenizer", "nowhere"], "merges.txt does not exist"),
    (["--tokenizer", "damaged"], "damaged"),
    (["--tokenizer", "without_end"], "has no <|endoftext|>"),
    (["--tokenizer", "out/tokenizer"], "copy this one to another folder"),
    (["--plot"], "report.png is in the way"),
])  # fmt: skip
def test_restart_checks_before_it_deletes(finished, tmp_path, monkeypatch, capsys, change, message):
    folder, call = finished
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    (tmp_path / "damaged").mkdir()
    for name in ("merges.txt", "vocab.json"):
        (tmp_path / "damaged" / name).write_text("{")
    BPETokenizer().train(TEXTS[0], 300, special_tokens=["<|stop|>"]).save(tmp_path / "without_end")
    (folder / "report.png").write_text("the user's")
    before = snapshot(folder)
    assert pipeline.main([*call, *change, "--restart"]) == 1
    assert message in capsys.readouterr().out
    assert snapshot(folder) == before


def test_restart_removes_only_what_a_run_made(finished, monkeypatch):
    folder, call = finished
    before = contents(folder)
    mine = ["report.docx", "report.jsonl", "report.png", "tokenizer/notes.txt", "tokenizer.json", "train_notes.bin",
            "train_1.bin", "state.db.bak", "manifest.json.old", "a.part"]  # fmt: skip
    for name in mine:
        (folder / name).write_text("the user's")
    assert pipeline.main([*call, "--restart"]) == 0
    assert {name: (folder / name).read_text() for name in mine} == dict.fromkeys(mine, "the user's")

    monkeypatch.setattr(pipeline.Run, "finish", lambda _: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        pipeline.main([*call, "--restart"])
    monkeypatch.undo()
    assert (folder / "state.db").is_file() and not (folder / "manifest.json").exists()
    assert pipeline.main([*call, "--restart", "--near", "0.9"]) == 0, "a run that was begun is removed too"
    assert {name: (folder / name).read_text() for name in mine} == dict.fromkeys(mine, "the user's")
    assert pipeline.main([*call, "--restart"]) == 0
    for name in mine:
        (folder / name).unlink()
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["train_00000.bin", "tokenizer/merges.txt", "report.json", "manifest.json.part"])
def test_a_users_files_are_in_the_way(finished, tmp_path, capsys, name):
    """Where no record says that a run made them, neither a new run nor --restart touches them."""
    _, call = finished
    file = tmp_path / "new" / name
    file.parent.mkdir(parents=True)
    file.write_text("the user's")
    before = snapshot(tmp_path / "new")
    for more in ([], ["--restart"]):
        refused([*call, "--out", str(tmp_path / "new"), *more], f"{name} is in the way", capsys)
        assert snapshot(tmp_path / "new") == before
    assert call[1] not in before


@pytest.mark.parametrize("name", [
    "state.db", "train_00000.bin.part", "tokenizer", "tokenizer.part", "manifest.json.part", "report.json.part",
    "report.png"])  # fmt: skip
@pytest.mark.parametrize("begun", [False, True])
def test_links_are_not_followed(finished, tmp_path, capsys, monkeypatch, name, begun):
    _, call = finished
    out, target = tmp_path / "new", tmp_path / "target"
    call = [*call, "--out", str(out), "--plot"]
    if begun:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "get_tokenizer", lambda _: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                pipeline.main(call)
        (out / name).unlink(missing_ok=True)
    out.mkdir(exist_ok=True)
    if name.startswith("tokenizer"):
        target.mkdir()
        (target / "merges.txt").write_text("the user's")
    else:
        target.write_text("the user's")
    (out / name).symlink_to(target)
    before = snapshot(tmp_path)
    for more in ([], ["--restart"]):
        refused([*call, *more], f"{out / name} is ", capsys)
        assert snapshot(tmp_path) == before


def test_state_of_another_program(finished, tmp_path, capsys):
    _, call = finished
    (tmp_path / "new").mkdir()
    with closing(sqlite3.connect(tmp_path / "new" / "state.db")) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "state.db").write_text("this is no database, but a text of some length" * 9)
    before = snapshot(tmp_path)
    refused([*call, "--out", str(tmp_path / "new"), "--restart"], "is the database of another program", capsys)
    refused([*call, "--out", str(tmp_path / "text")], f"{tmp_path / 'text' / 'state.db'}: file is not a", capsys)
    assert snapshot(tmp_path) == before


def test_a_finished_folder_knows_what_it_was_made_from(finished, tmp_path, tokenizer, capsys):
    folder, call = finished
    other = write_jsonl(tmp_path / "b.jsonl", TEXTS[:30])
    same_name = write_jsonl(tmp_path / "elsewhere" / "a.jsonl", TEXTS[:30])
    BPETokenizer().train(TEXTS[0], 300).save(tmp_path / "elsewhere" / "small")
    before = snapshot(folder)
    for change, message in [
        (["--source", str(other)], "sources ['a.jsonl'], now ['a.jsonl', 'b.jsonl']"),
        (["--train-tokenizer", "300"], "tokenizer 'folder small', now 'train 300'"),
        (["--tokenizer", str(tmp_path / "elsewhere" / "small")], "was made with another tokenizer than the one in"),
        (["--tokenizer", "gpt2"], "tokenizer 'folder small', now 'gpt2'"),
    ]:
        without = [] if "--train-tokenizer" not in change else ["--tokenizer", str(tokenizer)]
        these = [part for part in call if part not in without]
        output = refused([*these, *change], message, capsys)
        assert "--restart" in output and snapshot(folder) == before
    refused([*call[2:], "--source", str(other)], "sources ['a.jsonl'], now ['b.jsonl']", capsys)
    refused([*call[2:], "--source", str(same_name)], "a.jsonl had 1, now it has 1, or their contents differ", capsys)
    refused([*call[2:], "--source", "nowhere.jsonl"], "sources ['a.jsonl'], now ['nowhere.jsonl']", capsys)
    assert pipeline.main(call) == 0 and f"{folder} is complete" in capsys.readouterr().out
    source = Path(call[1])
    text = source.read_bytes()
    source.write_bytes(text.replace(b"River", b"Rivet", 1) + b"")
    refused(call, "or their contents differ", capsys)
    source.unlink()
    assert pipeline.main(call) == 0 and f"{folder} is complete" in capsys.readouterr().out
    assert snapshot(folder) == before


def test_a_folder_with_one_file_more_is_another_source(make, tmp_path):
    for name in ("in/a.jsonl", "in/test_b.jsonl"):
        write_jsonl(tmp_path / name, TEXTS[:40])
    make(tmp_path / "in", skip=("test_*",))
    write_jsonl(tmp_path / "in/test_c.jsonl", TEXTS[40:])
    make(tmp_path / "in", skip=("test_*",))
    write_jsonl(tmp_path / "in/c.jsonl", TEXTS[40:])
    with pytest.raises(CorpusError, match="in had 1, now it has 2"):
        make(tmp_path / "in", skip=("test_*",))


def test_a_file_that_comes_while_a_run_rests(make, tmp_path, monkeypatch):
    for name in "ab":
        write_jsonl(tmp_path / f"in/{name}.jsonl", TEXTS[:40] if name == "a" else TEXTS[40:])

    def dying(run):
        run.position = (1, 1)
        run.commit()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Run, "finish", dying)
        with pytest.raises(Killed):
            make(tmp_path / "in")
    write_jsonl(tmp_path / "in/c.jsonl", TEXTS[:9])
    with pytest.raises(CorpusError, match="in had 2 files when the run began, now it has 3"):
        make(tmp_path / "in")
    (tmp_path / "in/c.jsonl").unlink()
    (tmp_path / "in/a.jsonl").unlink()  # it was read
    make(tmp_path / "in")


def flip_in_state(path):
    content = bytearray(path.read_bytes())
    content[content.index(b'{"position"')] ^= 1
    path.write_bytes(content)


def swap(folder, one, other):
    os.rename(folder / one, folder / "aside")
    os.rename(folder / other, folder / one)
    os.rename(folder / "aside", folder / other)


def flip(path, at=100):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def other_tokenizer(folder):
    text = (folder / "vocab.json").read_text()
    (folder / "vocab.json").write_text(text.replace("<|endoftext|>", "<|endofwork|>"))


DAMAGES = {
    "train_00001.bin is missing": lambda folder: (folder / "train_00001.bin").unlink(),
    "train_00001.bin is damaged": lambda folder: flip(folder / "train_00001.bin"),
    "train_00000.bin has": lambda folder: swap(folder, "train_00000.bin", "train_00001.bin"),
    "merges.txt is missing": lambda folder: (folder / "tokenizer/merges.txt").unlink(),
    "merges.txt is damaged": lambda folder: flip(folder / "tokenizer/merges.txt"),
    "vocab.json is damaged": lambda folder: other_tokenizer(folder / "tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_finished_work_is_compared_with_its_checksums(finished, damage, capsys):
    folder, call = finished
    manifest = corpus_output.verify_corpus(folder)
    assert manifest == read_manifest(folder) and not (folder / "checked.json").exists()
    (folder / "report.json").unlink()
    corpus_output.verify_corpus(folder)
    DAMAGES[damage](folder)
    before = snapshot(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=damage):
        corpus_output.verify_corpus(folder)
    assert snapshot(folder) == before
    refused(call, damage, capsys)
    with pytest.raises((FileNotFoundError, ValueError), match=damage):
        corpus_output.merge([folder], folder.parent / "merged")
    assert not (folder.parent / "merged").exists()
    assert pipeline.main([*call, "--restart"]) == 0
    assert corpus_output.verify_corpus(folder) == manifest


def test_a_corpus_with_tokenizer_files_of_older_names_is_refused_by_the_file_that_it_lacks(finished, capsys):
    folder, call = finished
    manifest = json.loads((folder / "manifest.json").read_text())
    for old, new in (("vocab.bpe", "merges.txt"), ("encoder.json", "vocab.json")):
        (folder / "tokenizer" / new).rename(folder / "tokenizer" / old)
        manifest["files"][f"tokenizer/{old}"] = manifest["files"].pop(f"tokenizer/{new}")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = snapshot(folder)
    with pytest.raises(FileNotFoundError, match="vocab.json is missing"):
        corpus_output.verify_corpus(folder)
    refused(call, "vocab.json is missing", capsys)
    assert snapshot(folder) == before
    assert pipeline.main([*call, "--restart"]) == 0 and corpus_output.verify_corpus(folder)


def test_large_shards_are_read_again_only_when_they_have_changed(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(corpus_output, "LARGE", 3000)
    read = []
    monkeypatch.setattr(corpus_output, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    shards = [path.name for path in sorted(folder.glob("*.bin")) if path.stat().st_size > 3000]
    assert len(shards) > 2
    corpus_output.verify_corpus(folder)
    assert set(read) > set(shards)
    read.clear()
    corpus_output.verify_corpus(folder)
    assert read and not set(read) & set(shards)
    stat = (folder / shards[1]).stat()
    flip(folder / shards[1])
    os.utime(folder / shards[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=f"{shards[1]} is damaged"):
        corpus_output.verify_corpus(folder)
    (folder / "checked.json").write_text("[1")
    with pytest.raises(ValueError, match=f"{shards[1]} is damaged"):
        corpus_output.verify_corpus(folder)


@pytest.mark.parametrize("damage, message", [
    (lambda folder: (folder / "train_00001.bin").unlink(), "train_00001.bin is missing"),
    (lambda folder: flip(folder / "train_00001.bin"), "train_00001.bin is damaged"),
    (lambda folder: flip(max(folder.glob("train_*.part"))), "bin.part is not as the last run left it"),
    (lambda folder: max(folder.glob("train_*.part")).unlink(), "bin.part is not as the last run left it"),
    (lambda folder: other_tokenizer(folder / "tokenizer"), "vocab.json is damaged"),
    (lambda folder: write_jsonl(folder.parent / "a.jsonl", TEXTS[::-1]), "a.jsonl is no longer the file"),
    (lambda folder: (folder.parent / "a.jsonl").unlink(), "a.jsonl: No such file"),
    (lambda folder: (folder / "train_00099.bin").write_text("the user's"), "train_00099.bin is in the way"),
    (lambda folder: flip_in_state(folder / "state.db"), "state.db is damaged"),
])  # fmt: skip
def test_a_run_goes_on_only_with_what_it_left(finished, tmp_path, monkeypatch, capsys, damage, message):
    _, call = finished
    out = tmp_path / "new"
    call = [*call, "--out", str(out)]

    def dying(run):
        run.commit()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Run, "finish", dying)
        with pytest.raises(Killed):
            pipeline.main(call)
    damage(out)
    before = snapshot(out)
    capsys.readouterr()
    assert pipeline.main(call) == 1
    output = capsys.readouterr().out
    assert message in output and "Traceback" not in output
    assert snapshot(out) == before


def test_a_manifest_cannot_lead_out_of_its_folder(finished, tmp_path, capsys):
    folder, call = finished
    (tmp_path / "precious").write_text("the user's")
    manifest = read_manifest(folder)
    manifest["splits"]["train"]["shards"][0]["file"] = "../precious"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused([*call, "--restart"], "is damaged, or not a corpus manifest", capsys)
    manifest["splits"]["train"]["shards"].pop(0)
    manifest["files"]["../precious"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pipeline.main([*call, "--restart"])
    assert (tmp_path / "precious").read_text() == "the user's"


def test_a_merge_that_fails_leaves_nothing(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    other, copied = shutil.copytree(folder, tmp_path / "other"), []

    def full(source, target):
        if copied:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        copied.append(target)
        Path(target).write_bytes(b"x")

    with monkeypatch.context() as patch:
        patch.setattr(corpus_output, "link_or_copy", full)
        assert pipeline.main(["--merge", str(folder), str(other), "--out", str(tmp_path / "merged")]) == 1
    assert "train_00001.bin: No space left on device" in capsys.readouterr().out
    assert copied and list((tmp_path / "merged").iterdir()) == []
    assert pipeline.main(["--merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert corpus_output.verify_corpus(tmp_path / "merged")["splits"] == read_manifest(folder)["splits"]
    (folder / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="report.json is damaged"):
        corpus_output.merge([folder], tmp_path / "again")


# --- names of any kind ------------------------------------------------------------------------------------------------


def test_names_that_are_no_unicode(tmp_path, tokenizer, capsys):
    """A file named in Latin-1, a set name with half a surrogate pair or what a picture would take for a formula."""
    source = tmp_path / os.fsdecode(b"caf\xe9_\xe9.jsonl")
    names = ["caf\ud83d", "$x^", "x" * 10_000, "two\nlines", ""]
    lines = [json.dumps({"text": text, "meta": {"redpajama_set_name": names[i % 5]}}) for i, text in enumerate(TEXTS)]
    source.write_text("\n".join([*lines, "no JSON"]))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + os.fsencode(source) + b"\r\n")
    for number, given in enumerate([str(source), f"@{tmp_path / 'list.txt'}", str(tmp_path)]):
        out = tmp_path / f"out{number}"
        call = ["--source", given, "--out", str(out), "--tokenizer", str(tokenizer), "--workers", "1", "--plot",
                "--skip", os.fsdecode(b"\xe9*"), "--skip", "*.txt",
                "--keep-meta", "redpajama_set_name=caf\ud83d"]  # fmt: skip
        assert pipeline.main([*call, "--keep-meta", "redpajama_set_name=$x^"]) == 0
        manifest, report = read_manifest(out), json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert [Path(name).name for name in manifest["source"]["files"]] == ["caf\ufffd_\ufffd.jsonl"]
        assert {"caf\ufffd", "$x^"} < set(report["sources"])
        assert "caf\ufffd_\ufffd.jsonl, record 120: no JSON" in report["problems"][-1]
        assert (out / "report.png").stat().st_size > 5000
        capsys.readouterr()


def test_a_terminal_without_unicode(tmp_path, tokenizer, monkeypatch):
    write_jsonl(tmp_path / "ü.jsonl", redpajama_set_name="Bücher")
    call = ["--source", str(tmp_path / "ü.jsonl"), "--tokenizer", str(tokenizer), "--workers", "1", "--validation", "0"]
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert pipeline.main([*call, "--out", str(tmp_path / "out")]) == 0
    terminal.seek(0)
    output = terminal.read()
    assert "B\\xfccher" in output
    assert "the validation part is empty: all 120 documents are in train (--validation 0)" in output


# --- reading: cut, damaged, of another kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["zst", "gz"])
def test_a_file_of_several_frames_cut_anywhere(tmp_path, ending):
    """Cut within its last frame, by 3 bytes or by any other number: what came before, and a `Bad`."""
    pack = {"zst": zstandard.compress, "gz": gzip.compress}[ending]
    frames = [pack(json.dumps({"text": text}).encode() + b"\n") for text in TEXTS[:12]]
    whole, path = b"".join(frames), tmp_path / f"a.jsonl.{ending}"
    for less in range(len(frames[-1])):
        path.write_bytes(whole[: len(whole) - less])
        *records, last = corpus_input.read_records(path)
        assert len(records) >= 11 and all(isinstance(record, bytes) for record in records[:11])
        assert isinstance(last, bytes) if less == 0 else last.kind == corpus_input.UNREADABLE, less


@pytest.mark.parametrize("ending", ["zst", "gz", "parquet"])
def test_damaged_anywhere(tmp_path, ending):
    """One byte is another: the records come out with a `Bad` among them, or with other content, but no other error."""
    path = tmp_path / ("a.parquet" if ending == "parquet" else f"a.jsonl.{ending}")
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[:9], "meta": [{"a": 1}] * 9}), path)
    else:
        write_jsonl(path, TEXTS[:9])
    good, kinds, rng = path.read_bytes(), Counter(), random.Random(0)
    for at in [*range(12), *rng.sample(range(len(good)), 150), *range(len(good) - 40, len(good))]:
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
        kinds.update(type(record).__name__ for record in corpus_input.read_records(path))
    assert kinds["Bad"] > 20 and set(kinds) <= {"Bad", "bytes", "dict"}


@pytest.mark.parametrize("values", [
    [1, 2, 3], [0.5, float("nan"), None], [True, False, None], [b"bytes", None, b""], [["a"], [], None],
    [{"a": "b"}, None, {"a": "c"}], [datetime(2020, 1, 1), None, datetime(1, 1, 1)],
])  # fmt: skip
def test_parquet_columns_of_other_types(make, tmp_path, values):
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    folder = make(tmp_path / "a.parquet", write_jsonl(tmp_path / "b.jsonl", TEXTS[:20]))
    counts = counts_of(folder)
    assert counts["bad: no text"] == 3 and counts["records"] == 23
    assert sorted(documents_in(folder)) == sorted(TEXTS[:20])


def test_byte_order_marks(make, tmp_path):
    mark = b"\xef\xbb\xbf"
    for ending, pack in (("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)):
        raw = write_jsonl(tmp_path / "x.jsonl", TEXTS[:5]).read_bytes()
        (tmp_path / f"a.jsonl{ending}").write_bytes(pack(mark + raw + mark + raw))
        records = list(corpus_input.read_records(tmp_path / f"a.jsonl{ending}"))
        assert [json.loads(record)["text"] for record in records] == 2 * TEXTS[:5]
    (tmp_path / "a.txt").write_bytes(mark + b"<|endoftext|>\n" + "\n<|endoftext|>\n".join(TEXTS[5:9]).encode())
    assert [record["text"] for record in corpus_input.read_records(tmp_path / "a.txt")] == TEXTS[5:9]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_utf16_is_named(make, tmp_path, encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "a.txt").write_bytes((mark + "Ein Text, ещё один. " * 50).encode(encoding))
    (tmp_path / "b.jsonl").write_bytes((mark + json.dumps({"text": TEXTS[0]})).encode(encoding))
    folder = make(tmp_path / "a.txt", tmp_path / "b.jsonl", write_jsonl(tmp_path / "c.jsonl", TEXTS[:20]))
    assert sorted(documents_in(folder)) == sorted(TEXTS[:20])
    report = json.loads((folder / "report.json").read_text())
    assert sum("it is UTF-16; save it as UTF-8" in problem for problem in report["problems"]) == 2


# --- kill and resume --------------------------------------------------------------------------------------------------


def command(source, out, tokenizer, *more):
    return [sys.executable, str(ROOT / "03_gpt" / "prepare_corpus.py"), "--source", str(source), "--out", str(out),
            "--tokenizer", str(tokenizer), "--validation", "0.1", "--shard-tokens", "20000", *more]  # fmt: skip


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")
def test_killed_and_resumed_is_byte_identical(make, tmp_path, tokenizer):
    texts = [make_text(i, 200) for i in range(1500)]
    for i in range(3):
        write_jsonl(tmp_path / f"in/a_{i}.jsonl.zst", texts[i::3] + texts[:100])
    unbroken = make(tmp_path / "in", name="unbroken", shard_tokens=20000)
    out = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    call = command(tmp_path / "in", out, tokenizer, "--workers", "2")
    run = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list(out.glob("train_*.bin"))) < 3 and run.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    finished = {path.name: path.read_bytes() for path in out.glob("train_*.bin")}
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "killed before it was done"
    assert not (out / "manifest.json").exists() and len(finished) >= 3
    end = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers), "the workers go with their parent"
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(out) == contents(unbroken)
    assert {name: (out / name).read_bytes() for name in finished} == finished


@pytest.mark.skipif(sys.platform != "linux", reason="fork starts a run without the time of its imports")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_random_moments(make, tmp_path, tokenizer):
    """Killed with SIGKILL again and again, wherever it is, the run still ends with the same bytes."""
    texts = [make_text(i, 200) for i in range(300)]
    for i in range(3):
        write_jsonl(tmp_path / f"in/a_{i}.jsonl.gz", texts[i::3] + texts[:60])
    unbroken = make(tmp_path / "in", name="unbroken")
    call = command(tmp_path / "in", tmp_path / "out", tokenizer, "--workers", "1", "--shard-tokens", "2000")[2:]
    rng, kills = random.Random(0), 0
    for attempt in range(21):
        run = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(pipeline.main(call)))
        run.start()
        run.join(rng.uniform(0, 0.02 * attempt) if attempt < 20 else None)
        if run.exitcode is not None:
            break
        run.kill()
        run.join()
        kills += 1
    assert run.exitcode == 0 and kills >= 3
    assert contents(tmp_path / "out") == contents(unbroken)


@pytest.mark.parametrize("moment", ["before a commit", "after a commit", "before the manifest", "after the manifest"])
def test_death_at_the_worst_moment(make, tmp_path, monkeypatch, moment):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS + [edited(t, 1, random.Random(0)) for t in TEXTS])
    unbroken = make(source, name="unbroken")
    monkeypatch.setattr(pipeline, "BATCH_RECORDS", 16)
    save, name_finished, write_json = pipeline.Run._save, pipeline.ShardWriter.name_finished, pipeline.write_json

    def dying_save(run, name, value):
        save(run, name, value)
        if name == "progress" and len(run.writers["train"].shards) == 3:
            raise Killed

    def dying_name_finished(writer):
        if len(writer.shards) == 3:
            raise Killed
        name_finished(writer)

    def dying_write_json(path, value):
        if moment == "after the manifest":
            write_json(path, value)
        if path.name == "manifest.json" or moment == "before the manifest":
            raise Killed

    with monkeypatch.context() as patch:
        if moment == "before a commit":
            patch.setattr(pipeline.Run, "_save", dying_save)
        elif moment == "after a commit":
            patch.setattr(pipeline.ShardWriter, "name_finished", dying_name_finished)
        else:
            patch.setattr(pipeline, "write_json", dying_write_json)
        with pytest.raises(Killed):
            make(source, name="killed")
    assert contents(make(source, name="killed")) == contents(unbroken)


def test_death_after_any_document(make, tmp_path, monkeypatch):
    """Again and again, a few documents further: damaged files are counted once, the shards have the same bytes."""
    cut = write_jsonl(tmp_path / "in/a.jsonl.zst", TEXTS[:50]).read_bytes()
    (tmp_path / "in/a.jsonl.zst").write_bytes(cut[:-30])
    (tmp_path / "in/b.parquet").write_bytes(b"no")
    write_jsonl(tmp_path / "in/c.jsonl", TEXTS[50:])
    write_jsonl(tmp_path / "in/d.jsonl", TEXTS[80:])
    settings = dict(shard_tokens=1500, validation=0.3)
    unbroken = make(tmp_path / "in", name="unbroken", **settings)
    assert len(open_shards(unbroken, "validation")) > 2
    write, deaths = pipeline.Run.write, 0
    for stop in range(1, 30, 2):
        left = iter(range(stop))

        def dying(self, document, left=left):
            if next(left, None) is None:
                raise Killed
            write(self, document)

        with monkeypatch.context() as patch:
            patch.setattr(pipeline.Run, "write", dying)
            try:
                make(tmp_path / "in", name="killed", **settings)
                break
            except Killed:
                deaths += 1
    assert deaths > 5
    assert contents(make(tmp_path / "in", name="killed", **settings)) == contents(unbroken)


def test_full_disk(tmp_path, tokenizer, monkeypatch, capsys):
    source = write_jsonl(tmp_path / "a.jsonl")
    call = command(source, tmp_path / "out", tokenizer, "--workers", "1", "--shard-tokens", "2000")[2:]
    add, calls = pipeline.ShardWriter.add, Counter()

    def full(self, document):
        calls["add"] += 1
        if calls["add"] > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, document)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.ShardWriter, "add", full)
        assert pipeline.main(call) == 1
    message = capsys.readouterr().out
    assert "No space left on device" in message and "the same command goes on" in message
    finished = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.bin")}
    assert len(finished) >= 2
    assert pipeline.main(call) == 0
    assert sorted(documents_in(tmp_path / "out")) == sorted(TEXTS)
    assert {path: path.read_bytes() for path in finished} == finished
    assert pipeline.main(call) == 0 and "is complete" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files is POSIX")
@pytest.mark.parametrize("size", [0, 3000, 5000, 8000, 15_000])
def test_no_file_can_grow(make, tmp_path, tokenizer, capsys, size):
    """Wherever the disk is full first: a line that names the file, and with more space the run goes on."""
    import resource

    source = write_jsonl(tmp_path / "a.jsonl", TEXTS * 2)
    unbroken = make(source, name="unbroken", near=None)
    call = command(source, tmp_path / "out", tokenizer, "--workers", "1", "--shard-tokens", "2000", "--no-near")[2:]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        status = pipeline.main(call)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    output = capsys.readouterr()
    assert status == 1 and not output.err
    assert re.search(rf"^{tmp_path / 'out'}/\S+: \w+", output.out, re.MULTILINE), output.out
    assert size == 0 or "the same command goes on" in output.out
    assert pipeline.main(call) == 0
    assert contents(tmp_path / "out") == contents(unbroken)


def test_a_folder_is_not_mixed_up(make, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl")
    folder = make(source)
    before = contents(folder)
    with pytest.raises(CorpusError, match=r"limit None, now 5000.*--restart"):
        make(source, limit=5000)
    (folder / "manifest.json").unlink()
    left = snapshot(folder)
    with pytest.raises(CorpusError, match="is in the way, and no record says that a run has made it"):
        make(source)
    assert snapshot(folder) == left and contents(make(source, name="another")) == before

    monkeypatch.setattr(pipeline, "stream", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        make(source, name="two")
    with pytest.raises(CorpusError, match="shard_tokens 2000, now 3000"):
        make(source, name="two", shard_tokens=3000)
    busy = partial(pipeline.Run, tmp_path / "busy", Settings((str(source),)))
    with closing(busy()), pytest.raises(CorpusError, match="another process"):
        busy()


@pytest.mark.parametrize("arguments, message", [
    (["--source", "nowhere"], "there is no such file or folder"),
    (["--source", "~nobody-of-this-name/x"], "there is no such file or folder"),
    (["--source", "@nowhere"], "there is no list"),
    (["--source", "."], "there is no file ending in one of"),
    (["--source", "a.csv"], "a.csv: the name must end in one of"),
    (["--source", "empty.jsonl"], "no document was kept"),
    (["--source", "short.jsonl", "--no-near"], "no document was kept"),
    (["--source", "short.jsonl", "--shard", "1/2"], "there are not so many files"),
    (["--source", "hf://datasets/x"], "must be hf://datasets/OWNER/NAME"),
    (["--source", "http://127.0.0.1:9/../../a.txt"], "a path with .. leads out of the cache"),
])  # fmt: skip
def test_errors_are_one_clear_sentence(tmp_path, tokenizer, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if arguments != ["--source", "."]:
        for name, text in {"a.csv": "x", "empty.jsonl": "", "short.jsonl": '{"text": "short"}'}.items():
            Path(name).write_text(text)
    assert pipeline.main([*arguments, "--out", "out", "--tokenizer", str(tokenizer), "--workers", "1"]) == 1
    output = capsys.readouterr()
    assert message in output.out and "Traceback" not in output.out + output.err
    assert Path("out").exists() == ("no document was kept" in message), "what is refused leaves no trace"


@pytest.mark.parametrize("arguments, message", [
    ("", "give --source or --merge"), ("--source a --merge b", "give --source or --merge"),
    ("--merge a --restart", "--merge goes with no other"), ("--merge a --limit 5GB", "--merge goes with no other"),
    ("--source a --near 0.5 --no-near", "exclude"), ("--source a --tokenizer a --train-tokenizer 300", "exclude"),
    ("--source a --shard 2/2", "shard is '2/2'"), ("--source a --shard 0/0", "shard is '0/0'"),
    ("--source a --shard -1/2", "--shard"), ("--source a --keep-meta x", "KEY=VALUE"),
    ("--source a --limit much", "no size"), ("--source a --limit 0", "no size from 1 byte"),
    ("--source a --limit 0.4", "no size from 1 byte"), ("--source a --limit 1e400", "no size from 1 byte"),
    ("--source a --limit nan", "no size"), ("--source a --limit 2e9GB", "10^18"), ("--source a --limit -5", "--limit"),
    ("--source a --near 2", "near is 2.0"), ("--source a --near nan", "near is nan"),
    ("--source a --near 0", "near is 0.0; it must be more than 0"), ("--source a --near inf", "near is inf"),
    ("--source a --validation nan", "validation is nan"), ("--source a --validation -0.1", "--validation"),
    ("--source a --validation=-0.1", "validation is -0.1"), ("--source a --validation 1.5", "validation is 1.5"),
    ("--source a --train-tokenizer 9", "'train 9'"), ("--source a --train-tokenizer 0", "'train 0'"),
    ("--source a --train-tokenizer 65537", "'train 65537'"), ("--source a --shard-tokens 0", "shard_tokens is 0"),
    ("--source a --shard-tokens nan", "--shard-tokens"), ("--source a --workers 0", "--workers 0"),
    ("--source a --workers 1000000", "--workers 1000000"),
])  # fmt: skip
def test_wrong_arguments(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        pipeline.main([*arguments.split(), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "error:" in error and message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [
    {"sources": ()}, {"sources": "a.jsonl"}, {"skip": "test_*"}, {"near": float("nan")}, {"near": 0}, {"limit": 0},
    {"limit": float("inf")}, {"validation": float("nan")}, {"shard_tokens": 0}, {"shard": "3/2"},
    {"tokenizer": "train 0"}, {"tokenizer": "train many"},
])  # fmt: skip
def test_settings_out_of_bounds(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .*; it must be"):
        Settings(**({"sources": ("a",)} | settings))


def test_sizes():
    sizes = {"5GB": 5 * 10**9, "1.5MB": 1_500_000, "200k": 200_000, "7": 7, "2e3": 2000}
    assert {text: pipeline.size_in_bytes(text) for text in sizes} == sizes


def test_progress_and_plot(tmp_path, tokenizer, capsys):
    write_jsonl(tmp_path / "a.jsonl", redpajama_set_name="RedPajamaC4")
    call = command(tmp_path / "a.jsonl", tmp_path / "out", tokenizer, "--workers", "1", "--limit", "30kB", "--plot")[2:]
    assert pipeline.main(call) == 0
    output = capsys.readouterr().out
    for part in (" documents, ", " tokens", "B/s", "30.0k", "C4", "bytes kept"):
        assert part in output
    assert (tmp_path / "out" / "report.png").stat().st_size > 5000


# --- constant memory --------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """All that the main process does, on 4 and on 16 MB: the peak of Python's memory stays where it was."""
    peaks = []
    for megabytes in (4, 16):
        folder = tmp_path / str(megabytes)
        rng = np.random.default_rng(0)
        write_jsonl(folder / "a.jsonl.zst", (rng.bytes(12_500).hex() for _ in range(megabytes * 40)))
        settings = Settings((str(folder / "a.jsonl.zst"),), near=0.99, shard_tokens=200_000)
        with closing(pipeline.Run(folder / "out", settings)) as run:
            tracemalloc.start()
            for batch in pipeline.batches(run.files):
                documents = [fake_document(record, i) for i, record in enumerate(batch.records, batch.first)]
                assert run.take(batch, documents)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert run.total["documents"] == megabytes * 40
    assert peaks[1] < 1.2 * peaks[0] < 2**24, peaks


def fake_document(record, number):
    """A document with the hashes of its own, without the time that the real ones take."""
    rng = np.random.default_rng(number)
    return pipeline.Document(
        "x", read_bytes=len(record), text_bytes=len(record), key=int(rng.integers(2**60)),
        bands=rng.integers(2**60, size=16), signature=rng.integers(2**16, size=128, dtype=np.uint16),
        tokens=record[: len(record) // 2 * 2])  # fmt: skip


# --- the Hub ----------------------------------------------------------------------------------------------------------

SHA = "b5f90f419b7489cdba26fdbc8c022fcb5562f968"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the Hub's tree API, two entries a page, for the files in its folder; `log` holds the requests."""
    root = tmp_path / "hub"

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.server.log.append(self.path)
            path, _, query = self.path.partition("?")
            if self.server.refusals:
                status, headers = self.server.refusals.pop()
                self.send_response(status)
                for name, value in ({"Content-Length": "0"} | headers).items():
                    self.send_header(name, value)
                return self.end_headers()
            if "/revision/" in path:
                return self.answer({"sha": SHA})
            if "/tree/" not in path:
                return super().do_GET()
            repository, folder = path.removeprefix("/api/datasets/").split(f"/tree/{SHA}/")
            base = root / "datasets" / repository / "resolve" / SHA
            if not base.is_dir():
                return self.send_error(401)
            assert "recursive=true" in query
            entries = [{"type": "directory", "oid": "0", "size": 0, "path": "data"}]
            for file in sorted((base / folder).rglob("*.*")):
                entries.append({"type": "file", "size": file.stat().st_size, "path": file.relative_to(base).as_posix(),
                                "lfs": {"oid": hashlib.sha256(file.read_bytes()).hexdigest()}})  # fmt: skip
            start = int(query.partition("cursor=")[2] or 0)
            following = f'<http://{self.headers["Host"]}{path}?recursive=true&cursor={start + 2}>; rel="next"'
            if self.server.hostile:
                following = f'<http://{self.headers["Host"]}{self.path}>; rel="next"'
                entries = [{"type": "file", "size": 1, "path": self.server.hostile}]
                return self.answer(entries, following if self.server.hostile == "round" else None)
            return self.answer(entries[start : start + 2], following if start + 2 < len(entries) else None)

        def answer(self, value, link=None):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if link:
                self.send_header("Link", link)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    server.log, server.root, server.daemon_threads = [], root, True
    server.refusals, server.hostile = [], None  # (status, headers) of the next answers, the last first; a path to list
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "cache"))
    for name in ("LLM_MIRROR", "LLM_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(data.download, "dead_hosts", {})
    yield server
    server.shutdown()
    server.server_close()


def put(hub, repository, name, texts):
    path = hub.root / "datasets" / repository / "resolve" / SHA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)


def test_slimpajama_from_the_hub(hub, make, tmp_path):
    repository = data.registry.SLIMPAJAMA[0][0]
    for i in range(4):
        put(hub, repository, f"data/train-{i:05d}-of-00004-0123456789abcdef.parquet", TEXTS[30 * i : 30 * i + 30])
    put(hub, repository, "data/test-00000-of-00001.parquet", ["not this one " * 50])
    folder = make("slimpajama")
    assert sorted(documents_in(folder)) == sorted(TEXTS)
    manifest = read_manifest(folder)
    assert manifest["source"] == {
        "name": repository, "revision": SHA,
        "files": [f"data/train-{i:05d}-of-00004-0123456789abcdef.parquet" for i in range(4)]}  # fmt: skip
    assert sum("/tree/" in path for path in hub.log) == 3, "pages of the listing"
    assert set(json.loads((folder / "report.json").read_text())["sources"]) == {"train"}
    requests = len(hub.log)
    again = make("slimpajama", name="again")
    assert contents(again) == contents(folder)
    assert not any("resolve" in path for path in hub.log[requests:]), "what is in the cache is not fetched again"
    cached = tmp_path / "cache/hub" / repository / "data"
    assert len(list(cached.glob("*.parquet"))) == 4
    make("slimpajama", name="third", keep=False)
    assert not list(cached.glob("*.parquet"))


def test_the_second_copy_stands_in_for_the_first(hub, make):
    put(hub, data.registry.SLIMPAJAMA[1][0], "data/train-00000.parquet", TEXTS[:40])
    folder = make("slimpajama")
    assert read_manifest(folder)["source"]["name"] == data.registry.SLIMPAJAMA[1][0]
    assert read_manifest(folder)["source"]["revision"] == SHA, "the branch was resolved to a commit"


def test_no_copy_answers(hub, make):
    with pytest.raises(CorpusError, match=r"(?s)could not be had.*401.*hf://datasets/OWNER/NAME.*HF_ENDPOINT"):
        make("slimpajama")


def test_without_a_network_what_is_at_hand_is_used(hub, make, tmp_path, monkeypatch, capsys):
    put(hub, data.registry.SLIMPAJAMA[0][0], "data/train-00000.parquet", TEXTS[:40])
    first = make("slimpajama", name="first")
    os.rename(tmp_path / "cache", tmp_path / "stick")
    monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "stick"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    second = make("slimpajama", name="second")
    assert "using the 1 that are here" in capsys.readouterr().out
    assert read_manifest(second)["splits"] == read_manifest(first)["splits"]


def test_a_hub_that_asks_for_patience(hub, make, tmp_path, monkeypatch, capsys):
    """Too many requests, again and again, on the list and on a file: the run waits as it is told, and goes on."""
    put(hub, data.registry.SLIMPAJAMA[0][0], "data/train-00000.parquet", TEXTS[:40])
    pauses = []
    monkeypatch.setattr(data.network.time, "sleep", pauses.append)
    hub.refusals = [*4 * [(429, {"Retry-After": "7"})], (429, {}), (503, {})]  # from the last to the first
    folder = make("slimpajama")
    assert sorted(documents_in(folder)) == sorted(TEXTS[:40])
    assert sum(pause >= 7 for pause in pauses) == 4 and hub.refusals == []
    for path in (tmp_path / "cache").rglob("*.parquet"):
        path.unlink()
    pauses.clear()
    _ask = corpus_input._ask
    refusals = 5 * [(429, {"Retry-After": "11"})]
    monkeypatch.setattr(corpus_input, "_ask", lambda url: (_ask(url), setattr(hub, "refusals", refusals))[0])
    assert contents(make("slimpajama", name="again")) == contents(folder)
    assert sum(pause >= 11 for pause in pauses) == 5, "on the file itself"


@pytest.mark.parametrize("path, message", [
    ("data/train-../../../../x.parquet", "leads out of the cache"), ("round", "goes round in a circle")])  # fmt: skip
def test_a_hub_that_is_hostile(hub, make, tmp_path, path, message):
    put(hub, "someone/texts", "data/train-0.parquet", TEXTS[:40])
    hub.hostile = path
    with pytest.raises(CorpusError, match=message):
        make("hf://datasets/someone/texts/data/train-" if path != "round" else "hf://datasets/someone/texts")
    assert not (tmp_path / "out").exists()


def test_any_data_set_and_any_address(hub, make, tmp_path):
    put(hub, "someone/texts", "en/a-0.parquet", TEXTS[:30])
    put(hub, "someone/texts", "en/b-0.parquet", TEXTS[30:40])
    write_jsonl(hub.root / "files/c.jsonl.zst", TEXTS[40:60])
    (tmp_path / "list.txt").write_text(f"{hub.address}/files/c.jsonl.zst\n\n{hub.address}/files/c.jsonl.zst?x=1\n")
    folder = make("hf://datasets/someone/texts/en/a", f"@{tmp_path / 'list.txt'}")
    assert sorted(documents_in(folder)) == sorted(TEXTS[:30] + TEXTS[40:60])
    assert counts_of(folder)["exact duplicate"] == 20


def test_a_damaged_download_stops_the_run_and_it_goes_on(hub, make, monkeypatch):
    repository = "someone/texts"
    for i in range(3):
        put(hub, repository, f"a-{i}.parquet", TEXTS[40 * i : 40 * i + 40])
    unbroken = make(f"hf://datasets/{repository}", name="unbroken")
    third = hub.root / "datasets" / repository / "resolve" / SHA / "a-2.parquet"
    good = third.read_bytes()
    for path in data.places.data_dir().rglob("*.parquet"):
        path.unlink()
    monkeypatch.setattr(data.network, "PAUSE", 0)
    files, origin = corpus_input.hub_files(repository, SHA)
    third.write_bytes(good[::-1])
    monkeypatch.setattr(corpus_input, "hub_files", lambda *_: (files, origin))
    with pytest.raises(data.DownloadError, match="a-2.parquet"):
        make(f"hf://datasets/{repository}", name="broken")
    third.write_bytes(good)
    assert contents(make(f"hf://datasets/{repository}", name="broken")) == contents(unbroken)
