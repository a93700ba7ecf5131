"""`04_classification_finetune/classify.py`: files of messages, and the command line that labels them."""

import copy
import csv
import io
import os
import re
import signal
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch

from shared import training
from shared.checkpoints import save_model
from shared.tokenizer import BPETokenizer
from tests.test_classification import CONFIG, STORY, TEXTS, make

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "04_classification_finetune"))

import classify  # noqa: E402
from classify import read_messages  # noqa: E402


@pytest.fixture(scope="module")
def classifier():
    return make(BPETokenizer().train(STORY, CONFIG.vocab_size).to_tiktoken("x"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier):
    folder = tmp_path_factory.mktemp("models") / "spam_model"
    classifier.save(folder)
    return folder


# --- files -----------------------------------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_files_are_read(tmp_path, capsys):
    expected = [("ham", "café £5"), ("spam", "WIN")]
    assert read_messages(write(tmp_path / "a.tsv", "ham\tcafé £5\nspam\tWIN\n")) == expected
    assert read_messages(write(tmp_path / "b.txt", "\ufeffham\tcafé £5\r\nspam\tWIN\r\n")) == expected
    assert capsys.readouterr().err == ""
    file = write(tmp_path / "c.tsv", "ham\tok\nham\tcafé £5\nspam\tWIN".encode("cp1252"))
    assert read_messages(file) == [("ham", "ok"), *expected]
    said = capsys.readouterr().err
    assert str(file) in said and "line 2" in said and "Windows-1252" in said and said.count("\n") == 1


def test_csv_files_are_read(tmp_path):
    text = 'label,message\r\nham,"Hi, ""you"" there"\r\n\r\nspam,"two\nlines"\r\nham,plain\r\n'
    expected = [("ham", 'Hi, "you" there'), ("spam", "two lines"), ("ham", "plain")]
    assert read_messages(write(tmp_path / "a.csv", text)) == expected
    assert read_messages(write(tmp_path / "b.CSV", text.split("\r\n", 1)[1].encode("utf-8-sig"))) == expected
    assert read_messages(write(tmp_path / "c.csv", "v1,v2,,,\nham,hello,,,\nspam,\"win, or\",lose,,\n")) == [
        ("ham", "hello"), ("spam", "win, or,lose")]  # fmt: skip
    for name, turned in (("e.csv", "id;text;class\n1;WIN, now;SPAM \n2;hi;ham\n"),
                         ("e.txt", "text\tlabel\nWIN, now\tspam\nhi\tham")):
        assert read_messages(write(tmp_path / name, turned)) == [("spam", "WIN, now"), ("ham", "hi")]
    assert read_messages(write(tmp_path / "g.csv", ",label,text,number\n605,ham,hello,0\n7,spam,WIN,1\n")) == [
        ("ham", "hello"), ("spam", "WIN")]  # fmt: skip  # the numbers of pandas' rows are no part of the texts
    assert read_messages(write(tmp_path / "h.csv", "label,text\rham,hello\rspam,WIN\r")) == [
        ("ham", "hello"), ("spam", "WIN")]  # fmt: skip  # as old programs on a Mac end their lines
    assert read_messages(write(tmp_path / "i.csv", "Ham,hello\nSPAM ,WIN\n")) == [("ham", "hello"), ("spam", "WIN")]
    assert read_messages(write(tmp_path / "f.txt", "ham\ttext\nspam\tclass\n"))[0] == ("ham", "text")  # no headings
    assert read_messages(write(tmp_path / "d.csv", "ham,see you, later\nspam,\n")) == [  # nothing is lost
        ("ham", "see you, later"), ("spam", "")]  # fmt: skip
    assert read_messages(write(tmp_path / "g.csv", "art,nachricht\nham,hi\nspam,WIN\n")) == [
        ("ham", "hi"), ("spam", "WIN")]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "match"), [
    ("a.tsv", "ham\ta\nspam b\n", "a.tsv: line 2 has no tab"),
    ("b.tsv", "ham,a\nspam,b\n", "b.tsv: line 1 has no tab.*CSV"),
    ("c.csv", 'label,text\nham,a\n\nham,"two\nlines"\nsapm,b\n', "c.csv: line 6: the label is 'sapm'"),
    ("d.csv", "label,text\nham,a\nspam\n", "d.csv: line 3: 1 columns, where line 1 names 2"),
    ("d.csv", "text,time\nham,a\n", "d.csv: line 1 names no column of labels .label, category"),
    ("d.csv", "nachricht,art\nhello,ham\n", "d.csv: line 1 is 'nachricht,art': it must name the columns"),
    ("e.csv", "ham,a\rb\nspam,c", "e.csv: line 2 has no tab"),
    ("f.csv", "ham,b\nham," + "a" * 200_000, "f.csv: line 2: "),
    ("f.csv", 'ham,b\nham,"a quote that is not closed\nspam,c\n', "f.csv: line 3: "),
    ("f.csv", 'ham,b\nspam,"a" and "b"\n', "f.csv: line 2: "),
    ("g.tsv", "", "g.tsv: there is no message"),
    ("h.csv", "label,text\n", "h.csv: there is no message"),
    ("i.tsv", "ham\thello\n".encode("utf-16"), "i.tsv: "),
    ("j.tsv", b"\x89PNG\r\n\x1a\n\0\0\xff\x81", "j.tsv: line 1 has no tab"),
])  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, name, content, match):
    with pytest.raises(ValueError, match=match):
        read_messages(write(tmp_path / name, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.tsv"):
        read_messages(tmp_path / "nothing.tsv")


# --- the command line ------------------------------------------------------------------------------------------------


def run(*args, stdin=b"", **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, str(ROOT / "04_classification_finetune" / "classify.py"), *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, env=environment)


@pytest.fixture
def typed(folder, monkeypatch, capsys):
    """The same in this process, and for text: (exit status, standard output, standard error) of an input."""

    def run_here(text, where=folder):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8")), newline="\n"))
        return classify.main([str(where)]), *capsys.readouterr()

    return run_here


def test_lines_are_labelled(folder, classifier):
    texts = [text for text in TEXTS if "\ud83d half" not in text]
    labels, probabilities = classifier.predict(texts)
    scores = probabilities[:, 1].tolist()
    done = run(folder, stdin="\r\n".join(texts).encode("utf-8-sig") + b"\n")
    assert done.returncode == 0 and done.stderr == b""
    rows = [line.split("\t", 2) for line in done.stdout.decode("utf-8").replace("\r\n", "\n").split("\n")]
    assert rows.pop() == [""] and [row[0] for row in rows] == labels and [row[2] for row in rows] == texts
    assert [float(row[1]) for row in rows] == pytest.approx(scores, abs=1e-4)
    middle = sum(sorted(scores)[-2:]) / 2  # only one is above it
    done = run(folder, "--threshold", middle, stdin="\n".join(texts).encode("utf-8"))
    assert Counter(line.split("\t")[0] for line in done.stdout.decode("utf-8").split("\n") if line) == {
        "ham": len(texts) - 1, "spam": 1}  # fmt: skip


def test_every_message_has_one_label_in_arrays_in_the_kept_folder_and_on_the_command_line(classifier, tmp_path, typed):
    """Blanks, quotes and commas included, typed a line each and as a CSV text; the threshold is in their midst."""
    messages = classify.parse_messages((ROOT / "shared/data/samples/sms_messages.tsv").read_text(encoding="utf-8"))
    messages += [("ham", " two  blanks "), ("spam", 'WIN, "now"  call'), ("ham", "a\x85b\u2028c"), ("ham", "")]
    given, texts = zip(*messages, strict=True)
    scores = classifier.predict(texts)[1][:, 1]
    threshold = (scores.sort().values[len(texts) // 2 - 1 :][:2].mean()).item()
    in_arrays = ["spam" if is_spam else "ham" for is_spam in (scores >= threshold).tolist()]
    assert min(map(in_arrays.count, ("ham", "spam"))) > len(texts) / 3
    kept = classify.SpamClassifier(classifier.gpt, classifier.tokenizer, threshold=threshold)
    kept.head = classifier.head
    kept.save(tmp_path)
    assert classify.SpamClassifier.load(tmp_path).predict(texts)[0] == in_arrays
    table = io.StringIO(newline="")
    csv.writer(table).writerows([("label", "text"), *messages])
    right = sum(a == b for a, b in zip(given, in_arrays, strict=True))
    for text, said in (("\n".join(texts) + "\n", ""), (table.getvalue(), f"right: {right} of {len(texts)} ")):
        status, out, err = typed(text, tmp_path)
        assert status == 0 and [line.split("\t")[0] for line in out.split("\n")[:-1]] == in_arrays
        assert err.startswith(said)


def test_odd_bytes_and_a_narrow_terminal(folder):
    """Lines that are no UTF-8 are read as Windows-1252, and what the terminal cannot show becomes a question mark."""
    odd = b"caf\xe9 \x81\xfe\n" + "naïve\n\0\n漢字\n".encode()
    done = run(folder, stdin=odd, PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == ["input: line 1 is not UTF-8; read as Windows-1252"]
    lines = done.stdout.decode("latin-1").replace("\r\n", "\n").split("\n")
    assert [line.split("\t")[2] for line in lines[:-1]] == ["café ?þ", "naïve", "\0", "??"]


TABLE = 'Label,Text\r\nham,see you at 8\r\n\r\nSPAM ,"WIN, ""now"",\ncall us"\r\nham,\r\n'


@pytest.mark.parametrize(("table", "given"), [
    (TABLE, ["ham", "spam", "ham"]),
    (TABLE.replace("Label,Text", "category,message"), ["ham", "spam", "ham"]),
    ('v1,v2,,\nham,see you at 8,,\nspam,"WIN, ""now"", call us",,\n0,,,\n', ["ham", "spam", None]),
    ('id;sms;class\n1;see you at 8;ham\n2;"WIN, ""now"", call us";spam\n3;;ham\n', ["ham", "spam", "ham"]),
    ('text\tlabel\nsee you at 8\tham\n"WIN, ""now"", call us"\tspam\n""\tham', ["ham", "spam", "ham"]),
    ('text\nsee you at 8\n"WIN, ""now"", call us"\n""\n', []),
])  # fmt: skip
def test_a_table_is_read_by_the_names_of_its_columns(typed, classifier, table, given):
    texts = ["see you at 8", 'WIN, "now", call us', ""]
    scores = classifier.predict(texts)[1][:, 1].tolist()
    called = ["spam" if score >= 0.5 else "ham" for score in scores]
    status, out, said = typed("\ufeff" + table)
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and [row[2] for row in rows] == texts and [row[0] for row in rows] == called
    assert [float(row[1]) for row in rows] == pytest.approx(scores, abs=1e-4)
    right = sum(c == g for c, g in zip(called, given, strict=False))
    assert said.startswith(f"right: {right} of {len(given) - given.count(None)} (ham ") if given else said == ""
    assert (", spam 1 of 1)" if "spam" in called else ", spam 0 of 1)") in said or not given
    assert ("not counted, for their labels are not the model's: 1" in said) == (None in given)


@pytest.mark.parametrize("first", ["text, call or write", "class, tomorrow at 8", "ham,hello", '"quoted"', "label", ""])
def test_what_only_looks_like_a_table_is_read_by_lines(typed, first):
    texts = [first, "label,text", "a\tb"]
    status, out, said = typed("\n".join(texts))
    assert [line.split("\t", 2)[2] for line in out.splitlines()] == texts and status == 0
    assert said == "" if first != "ham,hello" else said.startswith("line 1 looks like headings")


@pytest.mark.parametrize(("text", "match"), [
    ("", "there is no message"), ("\ufeff", "there is no message"), ("\n \r\n", "there is no message"),
    ("label,text\n", "there is no message"),
    ("label,tweet\nham,hello\n", "line 1 names no column of texts.*message"),
    ('label,text\nham,"two\nlines"\nham,see you, later\n', "line 4: 3 columns, where line 1 names 2.*quotes"),
    ("label,text\nham\n", "line 2: 1 columns"),
    ('label,text\nham,"not closed\nspam,c\n', "line 3: unexpected end"),
])  # fmt: skip
def test_input_that_cannot_be_read_is_refused(typed, text, match):
    status, out, said = typed(text)
    assert (status, out, said.count("\n")) == (1, "", 1) and re.search(match, said)


def test_headings_without_a_known_one_are_not_passed_over_in_silence(typed):
    status, out, said = typed("foo,bar\nhello you,1\n")
    assert status == 0 and out.count("\n") == 2 and "line 1 looks like headings" in said
    assert "headings" not in typed("hello you, there\nsee you\n")[2]


def test_a_wrong_folder_gives_one_sentence(tmp_path):
    done = run(tmp_path / "nowhere", stdin=b"hello\n")
    assert done.returncode == 1 and done.stdout == b""
    said = done.stderr.decode("utf-8")
    assert "nowhere" in said and "config.json" in said and "Traceback" not in said and said.count("\n") == 1


@pytest.mark.parametrize(("options", "says"), [
    (["MODEL", "--threshold", "nan"], "a probability lies between 0 and 1"), ([], "--train FILE --out DIR"),
    (["--train", "x.csv"], "--train FILE --out DIR"), (["MODEL", "--train", "x.csv", "--out", "y"], "name the folder"),
    (["MODEL", "--threshold", "2"], "a probability lies between 0 and 1"),
])  # fmt: skip
def test_options_that_do_not_fit(options, says, capsys):
    with pytest.raises(SystemExit):
        classify.main(options)
    assert says in capsys.readouterr().err


def test_damaged_weights_give_one_sentence(typed, classifier, monkeypatch):
    monkeypatch.setattr(classify.SpamClassifier, "load", lambda folder: copy.deepcopy(classifier))
    monkeypatch.setattr(classify.SpamClassifier, "forward", lambda self, tokens, lengths: torch.full((1, 2), torch.nan))
    status, out, said = typed("hello\n")
    assert (status, out, said.count("\n")) == (1, "", 1) and "NaN" in said


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
def test_a_reader_that_has_read_enough(folder):
    command = [sys.executable, str(ROOT / "04_classification_finetune" / "classify.py"), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write(b"hello\n" * 2000)
        process.stdin.close()
        assert process.stderr.read() == b""


def test_a_million_blanks_are_a_message_like_any_other(folder):
    done = run(folder, stdin=f"hello\n{' ' * 1_200_000}x\nbye\n".encode())
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.count(b"\n") == 3


# --- a classifier of one's own ---------------------------------------------------------------------------------------

HAM = "the lamp was lit and the keeper went up the stairs {} times"
SPAM = "WIN {} pounds NOW call free"


@pytest.fixture
def own(tmp_path, monkeypatch, classifier):
    """A CSV file with its columns turned around, some of it in Windows-1252, and a tiny model to start from."""
    save_model(classifier.gpt, classifier.tokenizer, tmp_path / "base")
    monkeypatch.setenv("LLM_BASE", str(tmp_path / "base"))
    monkeypatch.setenv("LLM_DEVICE", "cpu")
    monkeypatch.setitem(classify.RECIPE, "quick", (400, 1e-3))
    rows = [f"{HAM.format(i)},HAM" for i in range(80)] + [f'"{SPAM.format(i)}, ok",spam' for i in range(20)]
    lines = ["Text,Label", *rows, rows[0], "caf\xe9,ham"]
    return write(tmp_path / "mine.csv", "\n".join(lines).encode("latin-1"))


def test_a_classifier_of_ones_own(own, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "new" / "filter"
    assert classify.main(["--train", str(own), "--out", str(kept)]) == 0
    out, said = capsys.readouterr()
    assert "mine.csv: line 103 is not UTF-8; read as Windows-1252" in said
    assert "102 messages, 1 of them repeated; 19.7% are spam" in out and "on 20 messages" in out
    assert "always saying ham is right in 80.0%" in out and out.count(" to ") == 4
    assert f"  python 04_classification_finetune/classify.py {kept} < messages.txt" in out.splitlines()
    threshold = classify.SpamClassifier.load(kept).threshold
    assert threshold == pytest.approx(1 - 14 / 71) and f"a probability of {threshold:.3f} on" in out

    both = [HAM.format(500), SPAM.format(500)]
    scores = classify.SpamClassifier.load(kept).predict(both)[1][:, 1].tolist()
    assert scores[0] < 0.5 < scores[1], "it has learned"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(both).encode())))
    assert classify.main([str(kept)]) == 0
    called = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert called == ["spam" if score >= threshold else "ham" for score in scores]

    before = sorted((file, file.read_bytes()) for file in kept.iterdir())
    assert classify.main(["--train", str(own), "--out", str(kept)]) == 1
    assert "is there already and not empty" in capsys.readouterr().err
    assert sorted((file, file.read_bytes()) for file in kept.iterdir()) == before


def test_a_csv_file_of_another_shape_trains_the_same_filter(own, tmp_path):
    rows = [("ham", HAM.format(i)) for i in range(40)] + [("spam", SPAM.format(i) + ", ok") for i in range(20)]
    shapes = {
        "plain": [("label", "text"), *rows],
        "of pandas, turned": [("", "message", "category"), *((i, b, a) for i, (a, b) in enumerate(rows))],
        "with empty columns": [("v1", "v2", "", ""), *((*row, "", "") for row in rows)],
    }
    kept = []
    for name, lines in shapes.items():
        with open(tmp_path / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=";" if "turned" in name else ",").writerows(lines)
        assert classify.main(["--train", str(tmp_path / f"{name}.csv"), "--out", str(tmp_path / name)]) == 0
        kept.append([(tmp_path / name / part).read_bytes() for part in ("model.safetensors", "config.json")])
    assert kept[0] == kept[1] == kept[2]


def test_a_perfect_score_on_few_messages_is_not_called_certain(own, tmp_path, monkeypatch, capsys):
    history = types.SimpleNamespace(interrupted=False, steps_done=1)
    monkeypatch.setattr(classify.classification, "train_classifier", lambda *arguments, **options: history)
    monkeypatch.setattr(classify.SpamClassifier, "predict", lambda self, texts: (
        [], torch.tensor([[1.0, 0.0] if text.startswith("the lamp") else [0.0, 1.0] for text in texts])))
    own.write_text("\n".join(line for line in own.read_text(encoding="cp1252").split("\n") if "caf" not in line))
    assert classify.main(["--train", str(own), "--out", str(tmp_path / "kept")]) == 0
    assert "  f1        1.000 (0.676 to 1.000)" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named_before_the_training(own, tmp_path, monkeypatch, capsys):
    def train(*arguments, **settings):
        raise AssertionError("it is trained before that is told")

    monkeypatch.setattr(classify.classification, "train_classifier", train)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "file").touch()
    for out in ("link", "file/kept"):
        assert classify.main(["--train", str(own), "--out", str(tmp_path / out)]) == 1
        assert out.partition("/")[0] in capsys.readouterr().err.splitlines()[-1]


def test_after_ctrl_c_it_is_kept_and_says_how_far_it_came(own, tmp_path, monkeypatch, capsys):
    def stopped(*arguments):
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    step = training.training_step
    monkeypatch.setattr(training, "training_step", stopped)
    assert classify.main(["--train", str(own), "--out", str(tmp_path / "kept")]) == 130
    assert "kept after 1 of " in capsys.readouterr().out
    assert classify.SpamClassifier.load(tmp_path / "kept").threshold > 0.5


def test_what_cannot_be_learned_from_is_one_sentence(own, tmp_path, capsys):
    for text, says in (("text,label\nhello,1\n", "line 2: the label is '1'; it must be one of ham, spam"),
                       ("text,label\nhello,ham\nWIN,spam\n", f"{own}: only 1 ham and 1 spam without")):  # fmt: skip
        own.write_text(text, encoding="utf-8")
        assert classify.main(["--train", str(own), "--out", str(tmp_path / "kept")]) == 1
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1 and not (tmp_path / "kept").exists()
