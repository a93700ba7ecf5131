"""Lesson 3.2 with a text of the reader's own, and 5.6 with their own chats: they run to their ends, and a file that
will not do gets one clear line."""

import ast
import csv
import json
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
CONVERSATIONS = notebooks.ROOT / "05_instruction_finetune" / "06_conversations.ipynb"
RUN = """
import json
import sys
from shared import data
from tests import bites
from tools import notebooks
changes = json.loads(sys.argv[2])
cells = bites.without(bites.code_of(notebooks.read(sys.argv[1])), json.loads(sys.argv[3]))
lesson = bites.Lesson(bites.smaller(cells, changes))
for number in lesson.cells:
    sys.stdout.write(lesson.run(number))
"""


def run(lesson, changes, environment, left_out=()):
    return subprocess.run([sys.executable, "-c", RUN, str(lesson), json.dumps(changes), json.dumps(left_out)],
                          cwd=notebooks.ROOT, env=environment, capture_output=True, encoding="utf-8")  # fmt: skip


def test_a_text_of_the_readers_own_is_trained_on_and_reported(tmp_path):
    """A text hardly long enough, in another language, that says the same over and over: no claim of the lesson fits."""
    (tmp_path / "mine.txt").write_text("Es war einmal ein König. " * 60, encoding="utf-8-sig")
    environment = os.environ | {"LLM_TEXT": "~/mine.txt", "HOME": str(tmp_path), "USERPROFILE": str(tmp_path),
                                "MPLBACKEND": "Agg", "LLM_SCALE": "quick", "LLM_DEVICE": "cpu"}  # fmt: skip
    done = run(LESSON, {"STEPS = 64, 4, 420": "STEPS = 64, 4, 12"}, environment)
    assert done.returncode == 0, done.stderr
    assert "text: mine.txt" in done.stdout and "\ufeff" not in done.stdout
    assert "not as in the course's text: after a known prompt the model recites" in done.stdout
    assert done.stdout.endswith("ok\n")  # the last exercise


REPAIRS = [  # what two people say, the user first
    "My kettle does not heat.|Does its lamp light up?|No, it stays dark.|Then it is the switch: 12 euros.|Thanks.",
    "Do you repair toasters?|We do. What is wrong with yours?|It burns one side.|Bring it on Tuesday, please.",
    "When are you open?|From 9 to 5, Monday to Friday.|And on Saturdays?|No, then we are closed.",
    "Is my radio ready?|Which number is on your slip?|It is 4471.|Number 4471 is ready.",
    "Is my mixer ready?|Which number is on your slip?|It is 5120.|Not yet.|Please write to ann@example.org then.",
    "My iron leaks.|It needs a new seal: 9 euros.", "My fan is loud.|It needs oil: 4 euros.", "Hello|Hello!",
    "Can you fetch my oven?|Where do you live?|Near the mill.|We come at 10.", "A new plug, please.|That is 5 euros.",
    "A giant: " + "and so on " * 600 + "|Yes.", "My kettle leaks.|" + "That is bad. " * 300,
]  # fmt: skip


@pytest.mark.parametrize("base", ["", "smollm2"])
def test_chats_of_the_readers_own_are_trained_on_and_talked_to(tmp_path, base):
    """Twelve chats as a spreadsheet writes them: names of one's own, no system line, the user last, one exchange, a
    turn longer than the context, hidden files beside them. From the course base, and from a model with ChatML; without
    the cells that do the same whatever the chats are."""
    folder = tmp_path / "my_chats"
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"\x00\x01")
    with open(folder / "repairs.csv", "w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["Chat", "Speaker", "Text"])
        rows.writerows([i, ("Guest", "Shop")[k % 2], said] for i, chat in enumerate(REPAIRS)
                       for k, said in enumerate(chat.split("|")))  # fmt: skip
    environment = os.environ | {"LLM_DATA_DIR": str(tmp_path), "LLM_BASE": base, "LLM_OFFLINE": "1", "LLM_MIRROR": "",
                                "MPLBACKEND": "Agg", "LLM_SCALE": "quick", "LLM_DEVICE": "cpu"}  # fmt: skip
    changes = {"speakers = {}": 'speakers = {"guest": "user", "shop": "assistant"}', "(1e-3, 60) if": "(1e-3, 4) if",
               "epochs=4, batch_size=4, threads=2, new_tokens=40": "epochs=2, batch_size=4, threads=2, new_tokens=16",
               'stranger = domains.parts("help_desk")[2]': 'stranger = domains.parts("help_desk")[2][:4]'}  # fmt: skip
    whatever_the_chats = ["figure, axis = plt.subplots(figsize=(7.5", "search = sorted(",  # of the saved table
                          "read_here, unseen, _", "def bits_after_training_solution"]  # the airline's  # fmt: skip
    done = run(CONVERSATIONS, changes, environment, whatever_the_chats)
    assert done.returncode == 0, done.stderr
    name = "smollm2-tiny" if base else "course_base"
    assert "masked as personal data: {'EMAIL': 1}" in done.stdout
    assert "your own chats: 8 + 2 + 2 conversations" in done.stdout
    assert "nothing is asked here of your chats" in done.stdout and f"{name} on your own chats: " in done.stdout
    assert (tmp_path / f"{name}-my_chats" / "model.safetensors").is_file()
    assert "our solution: ok" in done.stdout


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
