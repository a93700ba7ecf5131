"""The setup cell of every lesson, in a fresh Colab session (played by a stand-in) and in the course folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tools import hygiene, notebooks

ROOT = notebooks.ROOT
CARRIED = ("shared", "01_working_with_text", "02_attention", "03_gpt")

# What a notebook in Colab finds: google.colab in sys.modules, an empty folder, `git` on the PATH. Here `git` is played
# by a function that copies the course and notes how it was called.
SESSION = """
import importlib.util, json, shutil, subprocess, sys, types
from pathlib import Path

cell, course, carried, calls, in_colab = json.loads(sys.argv[1])
sys.path[:] = [p for p in sys.path if p not in ("", course)]
if in_colab:
    sys.modules["google"] = types.ModuleType("google")
    sys.modules["google.colab"] = types.ModuleType("google.colab")

def run(command, check=False, **options):
    with open(calls, "a", encoding="utf-8") as file:
        file.write(json.dumps(command) + "\\n")
    target = Path(command[-1].rsplit("/", 1)[-1])
    for name in carried:
        if (Path(course) / name).exists():
            shutil.copytree(Path(course) / name, target / name)

subprocess.run = subprocess.check_call = subprocess.check_output = run
names = {"__name__": "__main__"}
exec(compile(cell, "<setup cell>", "exec"), names)
length = len(sys.path)
exec(compile(cell, "<setup cell>", "exec"), names)
assert len(sys.path) == length, "running it twice adds to sys.path again"
print(Path(importlib.util.find_spec("shared.runtime").origin).resolve().parent.parent.as_posix())
print(Path(names["ROOT"]).resolve().as_posix())
"""


def run_cell(folder, in_colab, calls, cell=None):
    """Run the setup cell twice in a fresh process whose current folder is `folder`."""
    session = json.dumps([cell or notebooks.SETUP_CELL, str(ROOT), CARRIED, str(calls), in_colab])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", SESSION, session], cwd=folder, env=environment, text=True,
                          capture_output=True, encoding="utf-8", timeout=120)


def commands(calls):
    return [json.loads(line) for line in calls.read_text(encoding="utf-8").splitlines()] if calls.exists() else []


def test_a_fresh_colab_session_fetches_the_course_once(tmp_path):
    folder, calls = tmp_path / "content", tmp_path / "calls"
    folder.mkdir()
    done = run_cell(folder, True, calls)
    assert done.returncode == 0, done.stderr
    found, root = done.stdout.split()
    assert found == root == (folder / "build-a-gpt").resolve().as_posix()
    (command,) = commands(calls)
    assert command[:4] == ["git", "clone", "--depth", "1"] and command[4].startswith("https://github.com/")


def test_a_colab_session_that_has_the_course_fetches_nothing(tmp_path):
    folder, calls = tmp_path / "content", tmp_path / "calls"
    folder.mkdir()
    assert run_cell(folder, True, calls).returncode == 0
    assert run_cell(folder, True, calls).returncode == 0
    assert len(commands(calls)) == 1


def test_a_notebook_in_the_course_folder_fetches_nothing(tmp_path):
    course, calls = tmp_path / "course", tmp_path / "calls"
    shutil.copytree(ROOT / "shared", course / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    (course / "02_attention").mkdir()
    for in_colab in (False, True):
        done = run_cell(course / "02_attention", in_colab, calls)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [course.resolve().as_posix()] * 2
    assert commands(calls) == []


def test_outside_colab_and_the_course_the_cell_says_what_to_do(tmp_path):
    done = run_cell(tmp_path, False, tmp_path / "calls")
    assert done.returncode == 1 and "FileNotFoundError: the folder `shared` was not found" in done.stderr
    assert commands(tmp_path / "calls") == []


def test_the_cell_installs_nothing_and_clones_what_the_badge_names():
    cell = notebooks.SETUP_CELL
    assert "pip" not in cell and "%" not in cell and "!" not in cell
    badge = hygiene.COLAB_LINK.search(notebooks.read(notebooks.lessons()[0]).cells[0].source)
    assert f"https://github.com/{badge.group(1)}\"" in cell


@pytest.mark.parametrize(("old", "new"), [("ROOT is None and", "True and"), ("not in sys.path", "is not None")])
def test_the_test_notices_a_cell_that_works_only_once(tmp_path, old, new):
    cell = notebooks.SETUP_CELL.replace(old, new, 1)
    assert cell != notebooks.SETUP_CELL
    folder = tmp_path / "content"
    folder.mkdir()
    assert run_cell(folder, True, tmp_path / "calls", cell).returncode != 0
