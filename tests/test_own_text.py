"""Lesson 3.2 with a text of the reader's own: it runs to its end, and a file that will not do gets one clear line."""

import ast
import os
import subprocess
import sys

import pytest

from shared import data
from shared.tokenizer import load_tokenizer
from tests import bites
from tools import notebooks

LESSON = notebooks.ROOT / "03_gpt" / "02_pretraining_the_verdict.ipynb"
STORY = (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
RUN = """
import sys
from shared import data
from tests import bites
from tools import notebooks
changes = {"STEPS = 64, 4, 420": "STEPS = 64, 4, 12"}
lesson = bites.Lesson(bites.smaller(bites.code_of(notebooks.read(sys.argv[1])), changes))
for number in lesson.cells:
    sys.stdout.write(lesson.run(number))
"""


def test_a_text_of_the_readers_own_is_trained_on_and_reported(tmp_path):
    """A text hardly long enough, in another language, that says the same over and over: no claim of the lesson fits."""
    (tmp_path / "mine.txt").write_text("Es war einmal ein König. " * 60, encoding="utf-8-sig")
    environment = os.environ | {"LLM_TEXT": "~/mine.txt", "HOME": str(tmp_path), "USERPROFILE": str(tmp_path),
                                "MPLBACKEND": "Agg", "LLM_SCALE": "quick", "LLM_DEVICE": "cpu"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", RUN, str(LESSON)], cwd=notebooks.ROOT, env=environment,
                          capture_output=True, encoding="utf-8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "text: mine.txt" in done.stdout and "\ufeff" not in done.stdout
    assert "not as in the course's text: after a known prompt the model recites" in done.stdout
    assert done.stdout.endswith("ok\n")  # the last exercise


def taught(name, **given):
    """A function of the lesson, in a namespace with what it is `given`."""
    (node,) = [node for source in bites.code_of(notebooks.read(LESSON)).values() if f"def {name}(" in source
               for node in ast.parse(source).body if getattr(node, "name", "") == name]  # fmt: skip
    exec(compile(ast.Module([node], []), "<lesson>", "exec"), given)
    return given[name]


@pytest.mark.parametrize(("content", "match"), [
    (None, "there is no text file"), (b"", "has 0 tokens; this lesson needs 400"), (b" \n\n", "this lesson needs 400"),
    (b"too short", "has . tokens; this lesson needs 400"), (STORY.encode("utf-16"), "is not in UTF-8"),
    (STORY.encode("utf-8") + b"caf\xe9", "is not in UTF-8"),
])  # fmt: skip
def test_a_file_that_will_not_do_is_named(tmp_path, content, match):
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    read_text = taught("read_text", tokenizer=load_tokenizer("gpt2"))
    with pytest.raises((ValueError, FileNotFoundError), match=f"mine.txt.* {match}|{match}.*mine.txt") as caught:
        read_text(file)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"\xef\xbb\xbf" + STORY.encode("utf-8"))
    assert read_text(file) == STORY


def test_a_claim_is_demanded_of_the_courses_text_alone(capsys):
    taught("expect", own=None)(True, "so it is")
    with pytest.raises(AssertionError, match="so it is"):
        taught("expect", own=None)(False, "so it is")
    assert capsys.readouterr().out == ""
    for claim in (True, False):
        taught("expect", own="mine.txt")(claim, "so it is")
    assert capsys.readouterr().out == "as in the course's text: so it is\nnot as in the course's text: so it is\n"
