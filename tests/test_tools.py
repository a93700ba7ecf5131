"""The tools: running lessons, saving them, the set-up, the blocked network."""

import ast
import contextlib
import errno
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import nbformat.v4 as nbf
import psutil
import pytest
from nbval.kernel import start_new_kernel
from packaging.requirements import Requirement

from shared.data import places
from tests import bites
from tools import badges, carry, clean, execute, hygiene, notebooks, pages, run, save, setup, warm_kernels
from tools import test as test_tool

ROOT = notebooks.ROOT
SETUP = "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path.cwd().parent))"
OPENING = ("# Toy\n\n[![Open in Colab](../tools/colab_badge.svg)]"
           "(https://colab.research.google.com/github/your_account/build-a-gpt/blob/main/01_toy/01_good.ipynb)\n\n"
           "[all lessons](../README.md#the-lessons) · [Bad →](02_bad.ipynb)\n\n"
           "A formula: $\\frac{1}{\\sqrt{d}}$ and\n\n$$\\sum_{t} p_t = 1$$\n")
GOOD = [OPENING, SETUP, "Text.", "print(Path.cwd().name)", "Text.",
        "import os\nprint(os.environ['LLM_SCALE'])",
        "Text.", "print('first line')\nprint('loss 1.25')"]
BAD = ["# Bad", SETUP, "Text.", "def broken(x):\n    return x / 0\n\nbroken(1)", "Text.", "print('never')"]
DIES = ["# Dies", SETUP, "Text.", "import os\nos.kill(os.getpid(), 9)" if os.name != "nt" else "import os\nos._exit(9)"]


def make_notebook(path, sources):
    """A notebook in which every even source is prose; the last code cell is tagged `headline`."""
    cells = [nbf.new_code_cell(s) if i % 2 else nbf.new_markdown_cell(s) for i, s in enumerate(sources)]
    cells[1].metadata |= hygiene.SETUP_METADATA
    cells[-1].metadata["tags"] = ["headline"]
    path.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write(nbf.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def project(tmp_path):
    """A course with the real tools and `shared`, and no lessons yet."""
    for folder in ("tools", "shared"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("requirements.txt", "tests/requirements.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def environment(project):
    kept = {k: v for k, v in os.environ.items() if k not in ("LLM_MIRROR", "LLM_PYTHON")}
    return kept | {"LLM_OFFLINE": "1", "LLM_DATA_DIR": str(project / "data"), "PYTHONUTF8": "1"}


def tool(project, name, *arguments, **variables):
    return subprocess.run([sys.executable, "-m", f"tools.{name}", "--no-venv", *arguments], cwd=project, text=True,
                          env=environment(project) | variables, capture_output=True, encoding="utf-8", timeout=240)


def test_run_reports_each_lesson_and_goes_on_after_a_failure(project):
    before = [make_notebook(project / f"01_toy/{name}.ipynb", sources).read_bytes() for name, sources in
              [("01_good", GOOD), ("02_bad", BAD), ("03_dies", DIES), ("04_again", GOOD)]]
    done = tool(project, "run", LLM_DTYPE="float32")
    assert done.returncode == 1, done.stderr
    assert before == [path.read_bytes() for path in notebooks.lessons(project)]  # the lessons are left alone
    assert re.search(r"^\[1/4\] 01_toy/01_good +\d+\.\d s   loss 1\.25$", done.stdout, re.MULTILINE)
    assert "FAILED 01_toy/02_bad, cell 3: ZeroDivisionError: division by zero" in done.stdout
    assert "    def broken(x):\n        return x / 0\n" in done.stdout  # the cell
    assert "----> 2     return x / 0" in done.stdout and "\x1b" not in done.stdout  # the traceback
    assert "FAILED 01_toy/03_dies, cell 3: the kernel died" in done.stdout
    assert re.search(r"^\[4/4\] 01_toy/04_again +\d+\.\d s   loss 1\.25$", done.stdout, re.MULTILINE)
    assert "2 lessons passed, 2 failed" in done.stdout
    assert re.search(r"^01_toy/01_good +\d+\.\d +\d+  loss 1\.25$", done.stdout, re.MULTILINE)  # the table

    report = json.loads((project / "build/report.json").read_text(encoding="utf-8"))
    good, bad, dies, _ = report["notebooks"]
    assert report["scale"] == "quick" and report["data"] == "none" and report["state"] == "finished"
    assert report["number_format"] == "float32" and "number format float32\n" in done.stdout  # from LLM_DTYPE
    assert good["headline"] == "loss 1.25" and good["error"] == "" and good["peak_mb"] > 20
    assert bad["cell"] == 3 and dies["error"].startswith("the kernel died") and dies["seconds"] < 30

    page = (project / "build/index.html").read_text(encoding="utf-8")
    for text in ('href="01_toy/01_good.html"', 'href="01_toy/02_bad.ipynb"', "loss 1.25", "ZeroDivision", "2 failed",
                 "<title>Build a GPT</title>", ">Toy</a>", ">1 Working with text</th>", "4 lessons in"):
        assert text in page
    executed = notebooks.read(project / "build/01_toy/01_good.ipynb")
    assert executed.cells[3].outputs[0].text == "01_toy\n"  # ran in its own folder
    assert executed.cells[5].outputs[0].text == "quick\n"
    page = (project / "build/01_toy/01_good.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']https?://(?!colab)[^"']*|@import[^;]*http[^;]*|import\("http""", page)
    assert "<math" in page and "msqrt" in page and "MathJax" not in page
    assert 'href="02_bad.html"' in page and ">Open in Colab</a>" in page
    assert (project / "build/tools/colab_badge.svg").is_file()


def test_run_chooses_lessons_and_runs_side_by_side(project):
    for name in ("01_one", "02_two", "03_three"):
        make_notebook(project / f"01_toy/{name}.ipynb", GOOD)
    done = tool(project, "run", "--only", "1.2,*three", "--jobs", "2", "--out", "elsewhere")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 lessons passed, 0 failed" in done.stdout and "01_one" not in done.stdout
    wanted = os.environ.get("LLM_DTYPE", "auto")
    chosen = r"(float32|bfloat16) \(auto\)" if wanted == "auto" else wanted
    assert re.search(rf"number format {chosen}\n", done.stdout)  # what was chosen, and by whom
    assert sorted(path.name for path in (project / "elsewhere").glob("*/*.html")) == ["02_two.html", "03_three.html"]
    with pytest.raises(SystemExit):
        run.arguments_of(["--jobs", "0"])
    done = tool(project, "run", "--only", "2", "--out", "nowhere")
    assert done.returncode == 1 and not (project / "nowhere").exists()
    assert done.stderr == "no lesson fits '2'; there are:\n" + "".join(
        f"  1.{i}  01_toy/{name}\n" for i, name in enumerate(("01_one", "02_two", "03_three"), 1))


def kernels_of(process):
    """The living kernels that a process has started."""
    children = psutil.Process(process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "ipykernel" in " ".join(child.cmdline())]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_stops_the_run_and_its_kernel_and_keeps_what_was_finished(project):
    make_notebook(project / "01_toy/01_good.ipynb", GOOD)
    make_notebook(project / "01_toy/02_long.ipynb", ["# Long", SETUP, "Text.", "import time\ntime.sleep(120)"])
    process = subprocess.Popen([sys.executable, "-m", "tools.run", "--no-venv"], cwd=project, text=True,
                               env=environment(project), stdout=subprocess.PIPE, start_new_session=True)
    end = time.monotonic() + 60
    kernels = []
    while not (kernels and (project / "build/01_toy/01_good.html").exists()) and time.monotonic() < end:
        kernels = kernels_of(process)
        time.sleep(0.1)
    assert kernels, "no kernel was started"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped after 1 of 2 lessons" in output and "FAILED" not in output
    report = json.loads((project / "build/report.json").read_text(encoding="utf-8"))
    assert report["state"] == "stopped" and report["lessons"] == 2
    assert [(r["name"], r["error"]) for r in report["notebooks"]] == [("01_toy/01_good", "")]
    page = (project / "build/index.html").read_text(encoding="utf-8")
    assert "Stopped after 1 of 2 lessons, 0 failed." in page and 'href="01_toy/01_good.html"' in page
    _, alive = psutil.wait_procs(kernels, timeout=10)
    assert not alive


def test_run_refuses_a_setting_that_cannot_be_before_the_first_lesson(project):
    make_notebook(project / "01_toy/01_good.ipynb", GOOD)
    done = tool(project, "run", LLM_DEVICE="gpu")
    assert done.returncode == 1
    assert done.stderr == ("LLM_DEVICE='gpu' cannot be used here: it must be cpu, cuda (or cuda:1, the second GPU) or "
                           "mps\n")
    assert not (project / "build").exists()


@pytest.mark.parametrize(("name", "content", "says"), [
    ("LLM_TEXT", None, "mine: No such file"), ("LLM_TEXT", b" \n", "mine is empty"),
    ("LLM_TEXT", "König".encode("latin-1"), "mine is not in UTF-8"), ("LLM_TEXT", {}, "mine: "),
    ("LLM_BASE", None, "mine does not exist"), ("LLM_BASE", {}, "mine/config.json does not exist"),
    ("LLM_BASE", {"config.json": "{}"}, "mine has no model.safetensors"),
    ("LLM_BASE", {"config.json": "{", "model.safetensors": ""}, "config.json is damaged"),
])
def test_a_setting_that_names_what_is_not_there_is_one_line(tmp_path, monkeypatch, name, content, says):
    for other in ("LLM_TEXT", "LLM_BASE"):
        monkeypatch.delenv(other, raising=False)
    run.check_settings()
    monkeypatch.setenv(name, "~nobody-of-this-name/mine")
    with pytest.raises(ValueError, match=f"^{name}: .*~nobody-of-this-name"):
        run.check_settings()
    mine = tmp_path / "mine"
    if isinstance(content, bytes):
        mine.write_bytes(content)
    elif content is not None:
        mine.mkdir()
        for file, text in content.items():
            (mine / file).write_text(text, encoding="utf-8")
    monkeypatch.setenv(name, str(mine))
    with pytest.raises(ValueError, match=f"^{name}: .*") as caught:
        run.check_settings()
    assert says in str(caught.value).replace("\\", "/") and "\n" not in str(caught.value)


@pytest.fixture
def quickly(tmp_path, monkeypatch):
    """A function that plays `tools.run` over lessons that only seem to run; a lesson called `stop` is a Ctrl-C."""
    def run_all(paths, jobs, seconds, environment, before, after):
        for path in paths:
            if path.stem.endswith("stop"):
                raise KeyboardInterrupt
            after(execute.Result(path, notebooks.read(path), 1.2, 300.0, "loss 1.25"))

    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks.lessons, "__defaults__", (tmp_path,))
    monkeypatch.setattr(notebooks.chosen, "__defaults__", (tmp_path,))
    monkeypatch.setattr(execute, "run_all", run_all)
    monkeypatch.setattr(pages, "notebook_page", lambda notebook, path: "a page")
    monkeypatch.setattr(run.os, "_exit", lambda status: sys.exit(status))
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / notebooks.BADGE, tmp_path / "tools")
    for name in ("01_toy/01_one", "01_toy/02_two", "02_new/01_stop"):
        make_notebook(tmp_path / f"{name}.ipynb", [f"# {name[1]}.{name[8]} The {name[10:]}", SETUP, "Text.", "1"])
    handler = signal.getsignal(signal.SIGINT)

    def play(*arguments):
        with contextlib.suppress(SystemExit):
            run.main(["--no-venv", "--out", str(tmp_path / "build"), *arguments])
        return (tmp_path / "build/index.html").read_text(encoding="utf-8")

    yield play
    signal.signal(signal.SIGINT, handler)


def test_the_index_keeps_the_pages_of_earlier_runs(quickly, tmp_path, capsys):
    assert re.search(r">1 lesson in \d+ seconds?, all without an error.<", quickly("1.1"))  # without --only, too
    assert "1 lesson, scale" in capsys.readouterr().out
    before = json.loads((tmp_path / "build/report.json").read_text(encoding="utf-8"))["finished"]
    page = quickly("--only", "1.2")
    assert re.findall(r">(\d\.\d [^<]*)</a>", page) == ["1.1 The one", "1.2 The two"]
    assert page.count("Earlier run") == 1 and f"Earlier run, {before}:</span> loss 1.25" in page
    assert ">1 Working with text</th>" in page
    page = quickly("1.2", "2.1")
    assert "Stopped after 1 of 2 lessons" in page and page.count("Earlier run") == 1 and ">1.1 The one<" in page
    (tmp_path / "build/01_toy/01_one.html").unlink()
    assert ">1.1 The one<" not in quickly("1.2")


def test_the_index_keeps_the_pages_of_a_run_beside_this_one(quickly, monkeypatch):
    def meanwhile(*arguments):
        monkeypatch.setattr(execute, "run_all", alone)
        quickly("1.1")
        return alone(*arguments)

    alone = execute.run_all
    monkeypatch.setattr(execute, "run_all", meanwhile)
    assert re.findall(r">(\d\.\d [^<]*)</a>", quickly("1.2")) == ["1.1 The one", "1.2 The two"]


@pytest.mark.parametrize("row", [{"name": "01_toy/01_one"}, {"name": "x/01_one"}, [], None])
def test_rows_of_another_program_are_left_out(quickly, tmp_path, row):
    quickly("1.1")
    (tmp_path / "build/report.json").write_text(json.dumps({"notebooks": [row], "earlier": []}), encoding="utf-8")
    (tmp_path / "build/x").mkdir()
    (tmp_path / "build/x/01_one.html").touch()
    assert ">1.2 The two</a>" in quickly("1.2")


def test_a_report_that_cannot_be_written_leaves_the_old_one(quickly, tmp_path, monkeypatch):
    def full(path, text, **settings):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    quickly("1.1")
    before = (tmp_path / "build/report.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left.*report\.json"):
        quickly("1.2")
    assert (tmp_path / "build/report.json").read_bytes() == before


def test_a_notebook_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = make_notebook(tmp_path / "01_toy/01_good.ipynb", GOOD)
    before, write = path.read_bytes(), Path.write_text

    def killed(path, text, **settings):
        write(path, text[:20], **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        notebooks.write(notebooks.read(path), path)
    assert path.read_bytes() == before


def test_carry_names_a_notebook_that_is_not_there(capsys):
    for arguments, says in (["nothing.ipynb"], "there is no nothing.ipynb"), (["--help"], "NOTEBOOK"):
        with pytest.raises(SystemExit):
            carry.main(arguments)
        assert says in "".join(capsys.readouterr())


def test_a_copy_that_cannot_be_written_is_a_lesson_that_failed(quickly, monkeypatch, capsys):
    def full(result, out):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "01_one.ipynb")

    monkeypatch.setattr(run, "write_copies", full)
    quickly("1.1")
    said = capsys.readouterr().out
    assert "FAILED: its copy could not be written" in said and "0 lessons passed, 1 failed" in said


def test_a_folder_for_the_results_that_cannot_be_made_is_one_sentence(project):
    make_notebook(project / "01_toy/01_good.ipynb", GOOD)
    (project / "file").touch()
    done = tool(project, "run", "--out", "file")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "file" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("fails", "says"), [
    (ValueError("LLM_TEXT: no"), "Nothing was run: LLM_TEXT: no"),
    (KeyboardInterrupt(), "A run has begun and not ended: 0 of 1 lesson so far.")])
def test_an_index_does_not_speak_of_another_run(quickly, monkeypatch, fails, says):
    quickly("1.1")

    def fail():
        raise fails

    monkeypatch.setattr(run, "check_settings", fail)
    with contextlib.suppress(KeyboardInterrupt):
        quickly("1.2")
    page = quickly("1.2") if isinstance(fails, ValueError) else None
    page = page or (notebooks.ROOT / "build/index.html").read_text(encoding="utf-8")
    assert says in page and "all without an error" not in page and page.count("Earlier run") == 1


def test_what_is_folded_in_a_notebook_is_folded_on_its_page(tmp_path):
    def folded(title, code, *tags):
        shown = [nbf.new_output("stream", name="stdout", text=f"printed by {code}\n")]
        source = f'#@title {title} {{ display-mode: "form" }}\n{code}'
        fold = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input", *tags]}
        return nbf.new_code_cell(source, metadata=fold, outputs=shown, execution_count=1)

    notebook = nbf.new_notebook(cells=[
        nbf.new_markdown_cell("# 1.1 Toy\n\n[all lessons](../README.md#the-lessons)\n\n"
                              "<details><summary>Hint</summary>\n\nLook *there*.\n</details>\n\nAfter it."),
        folded("Set-up: finds it (the same; double-click to open)", "a_set_up", "setup"),
        folded("Drawing: a < b (double-click to open)", "a_drawing", "drawing"),
        folded("Solution 1.1.1 (double-click to open)", "a_solution", "solution"), nbf.new_code_cell("plain"),
        folded("Finished code: a loop (double-click to open)", "a_loop")])
    notebook.cells[-1].source = "# -> shared/x.py\n" + notebook.cells[-1].source
    page = pages.notebook_page(notebook, tmp_path / "x.ipynb")
    assert "<title>1.1 Toy</title>" in page and 'href="../index.html"' in page
    inside = re.findall(r'<details class="folded"><summary>(.*?)</summary>(.*?)</details>', page, re.DOTALL)
    assert [title for title, _ in inside] == ["Set-up: finds it (the same)", "Drawing: a &lt; b", "Solution 1.1.1",
                                             "Finished code: a loop"]
    assert "shared/x.py" in inside[3][1]
    for code, (_, hidden), whole in zip(("a_set_up", "a_drawing", "a_solution"), inside, (False, False, True)):
        assert code in hidden and (f"printed by {code}" in hidden) == whole and f"printed by {code}" in page
    assert re.search(r"<summary>Hint</summary>\s*<p>Look <em>there</em>.</p>\s*</details>\s*<p>After it", page)
    assert "#@title" not in page and "<details open" not in page


def test_a_drawing_on_a_page_has_its_words(tmp_path):
    drawn = nbf.new_output("execute_result", {"image/svg+xml": "<svg></svg>", "text/plain": 'a "box" & an arrow'})
    cell = nbf.new_code_cell("draw()", outputs=[drawn], execution_count=1)
    notebook = nbf.new_notebook(cells=[nbf.new_markdown_cell("# 1.1 Toy"), cell])
    page = pages.notebook_page(notebook, tmp_path / "x.ipynb")
    words = re.search(r"""<img alt=(['"])(.*?)\1""", page)[2]
    assert html.unescape(words) == 'a "box" & an arrow'


def test_a_cell_that_runs_too_long_is_reported(tmp_path):
    path = make_notebook(tmp_path / "01_toy/01_slow.ipynb", ["# Slow", SETUP, "Text.", "import time\ntime.sleep(60)"])
    result = execute.run_notebook(path, cell_seconds=2)
    assert result.cell == 3 and result.error == "this cell ran for more than 2 seconds" and result.seconds < 30


def test_save_writes_clean_outputs_in_place(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "bfloat16")  # saved outputs do not depend on it
    code = ("import os, sys\nfrom tqdm import tqdm\nassert os.environ['LLM_DTYPE'] == 'float32'\n"
            "for i in tqdm(range(3)):\n    pass\nlen('four')")
    sources = [*GOOD, "Text.", code]
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / notebooks.BADGE, tmp_path / notebooks.BADGE)
    (tmp_path / "README.md").touch()
    path = make_notebook(tmp_path / "01_toy/01_good.ipynb", sources)
    other = make_notebook(tmp_path / "01_toy/02_bad.ipynb", BAD)
    ids = [cell.id for cell in notebooks.read(path).cells]
    assert save.save(path) == []
    saved = notebooks.read(path)
    assert [cell.id for cell in saved.cells] == ids
    assert [cell.execution_count for _, cell in notebooks.code_cells(saved)] == [1, 2, 3, 4, 5]
    assert [output.output_type for output in saved.cells[9].outputs] == ["execute_result"]  # no progress bar
    assert saved.cells[9].outputs[0].execution_count == 5
    assert saved.metadata == hygiene.METADATA and "execution" not in saved.cells[1].metadata
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert hygiene.violations(path, tmp_path) == []
    assert sorted(path.parent.iterdir()) == [path, other]  # nothing else is left in the folder
    first = path.read_bytes()
    assert save.save(path) == [] and path.read_bytes() == first  # the same again


@pytest.mark.parametrize(("code", "expected"), [
    ("1 / 0", "ZeroDivisionError"),
    ("import warnings\nwarnings.warn('careful')", "a saved warning|saved stderr"),
    ("print('/home/someone/course/data')", "a path of one machine"),
    ("import base64\nprint(base64.b64encode(bytes(400_000)).decode())", "kB; at most 500"),
])
def test_save_leaves_a_notebook_that_breaks_the_rules_as_it_was(tmp_path, code, expected):
    path = make_notebook(tmp_path / "01_toy/01_good.ipynb", ["# Toy", SETUP, "Text.", code])
    before = path.read_bytes()
    assert re.search(expected, "\n".join(save.save(path)))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_save_refuses_sample_data(tmp_path, monkeypatch):
    path = make_notebook(tmp_path / "01_toy/01_good.ipynb", GOOD)
    before = path.read_bytes()
    monkeypatch.setattr(save, "sample_data", lambda: ["the_verdict"])
    with pytest.raises(SystemExit, match="bundled samples stand in for the_verdict"):
        save.main(["--no-venv", str(path)])
    assert path.read_bytes() == before
    assert save.main(["--no-venv", "--allow-sample", str(path)]) == 0 and path.read_bytes() != before
    for wrong in ([], ["missing.ipynb"], ["--all", str(path)]):
        with pytest.raises(SystemExit, match="2"):
            save.main(wrong)


@pytest.mark.parametrize(("lesson", "own", "says"), [
    ("06_conversations", "my_chats/a.csv", "my_chats holds chats of your own"),
    ("08_chat_service", "course_base-my_chats/config.json", "course_base-my_chats is a model trained on chats"),
])  # fmt: skip
def test_save_keeps_own_chats_and_models_of_them_out_of_lessons(tmp_path, monkeypatch, lesson, own, says):
    path, file = make_notebook(tmp_path / f"01_toy/{lesson}.ipynb", GOOD), tmp_path / "data" / own
    before = path.read_bytes()
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(save, "sample_data", list)
    (tmp_path / "data/my_chats").mkdir(parents=True)
    (tmp_path / "data/my_chats/.DS_Store").touch()
    assert places.own_chats() == []
    file.parent.mkdir(exist_ok=True)
    file.write_text("id,role,text\n")
    with pytest.raises(SystemExit, match=says):
        save.main(["--no-venv", str(path)])
    assert path.read_bytes() == before


def test_sample_data_names_what_is_not_real(monkeypatch, tmp_path):
    monkeypatch.delenv("LLM_MIRROR", raising=False)
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    assert {"the_verdict", "gpt2_vocab", "gpt2_encoder"} <= set(save.sample_data())


def test_badges_rewrite_the_link_and_the_clone_address(tmp_path):
    clone = 'run(["git", "clone", "--depth", "1", "https://github.com/your_account/build-a-gpt"], check=True)'
    opening = OPENING.replace("../tools/colab_badge.svg", "https://example.org/badge.svg")
    path = make_notebook(tmp_path / "01_toy/01_good.ipynb", [opening, clone, "See https://github.com/openai/tiktoken."])
    before = path.read_text(encoding="utf-8")
    assert badges.main(["someone/my-gpt"], tmp_path) == 0
    after = path.read_text(encoding="utf-8")
    assert before.count("your_account/build-a-gpt") == 2 and after.count("someone/my-gpt") == 2
    assert "your_account" not in after and "github.com/openai/tiktoken" in after
    assert notebooks.read(path).cells[0].source == OPENING.replace("your_account/build-a-gpt", "someone/my-gpt")
    assert notebooks.read(path).cells[1].source == clone.replace("your_account/build-a-gpt", "someone/my-gpt")
    for wrong in ([], ["someone"], ["a/b", "c/d"], ["https://github.com/a/b"]):
        with pytest.raises(SystemExit, match="2"):
            badges.main(wrong, tmp_path)


def test_clean_removes_what_the_tools_made_and_nothing_else(tmp_path):
    made = ["build/x.html", "shared/data/__pycache__/a.pyc", ".pytest_cache/b", "01_toy/.ipynb_checkpoints/c"]
    kept = [".venv/lib/__pycache__/d", "data/e", "work/.ipynb_checkpoints/h", "shared/f.py", ".git/build/g"]
    for name in made + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clean.main([], tmp_path)
    assert not any((tmp_path / name).exists() for name in made) and all((tmp_path / name).exists() for name in kept)


def test_headline_is_the_last_line_of_the_tagged_cells():
    cell = nbf.new_code_cell("x", outputs=[nbf.new_output("stream", name="stdout", text="one\n\x1b[1mtwo\x1b[0m\n\n")])
    notebook = nbf.new_notebook(cells=[cell])
    assert execute.headline_of(notebook) == ""
    cell.metadata["tags"] = ["headline"]
    assert execute.headline_of(notebook) == "two"


def test_a_page_shows_warnings_and_no_progress_bars(tmp_path):
    steps, warning = (nbf.new_output("stream", name="stderr", text=text) for text in (
        "  0%|  | 0/9 [00:00<?, ?step/s]\r 50%|█ | 4/9 [00:01<00:01, 4.00step/s]", "a.py:1: UserWarning: odd"))
    cell = nbf.new_code_cell("x", outputs=[steps, warning, nbf.new_output("stream", text="loss 1.25")])
    notebook = nbf.new_notebook(cells=[nbf.new_markdown_cell("# 1.1 Toy"), cell])
    page = pages.notebook_page(notebook, tmp_path / "01_toy/01_a.ipynb")
    assert "step/s" not in page and "UserWarning: odd" in page and "loss 1.25" in page
    assert len(cell.outputs) == 3, "the notebook that was given is left alone"


def test_a_page_survives_a_formula_that_cannot_be_converted(monkeypatch, tmp_path):
    notebook = nbf.new_notebook(cells=[nbf.new_markdown_cell("Before $a < b$ after")])
    assert "<math" in pages.notebook_page(notebook, tmp_path / "x.ipynb")
    monkeypatch.setattr(pages, "to_mathml", None)
    assert "$a &lt; b$" in pages.notebook_page(notebook, tmp_path / "x.ipynb")


def test_only_takes_chapters_lessons_and_patterns_of_the_path(tmp_path):
    for name in ("01_a/01_x", "01_a/02_y", "02_b/01_y", "02_b/02_z", "02_b/Untitled"):
        make_notebook(tmp_path / f"{name}.ipynb", ["# T", "1"])
    x, y, second_y, z = paths = notebooks.lessons(tmp_path)  # a file without a number is the reader's own
    for wanted, expected in [
            ("2", [second_y, z]), ("02", [second_y, z]), ("2.1", [second_y]), ("1.2", [y]), ("02_*", [second_y, z]),
            ("02_b", [second_y, z]), ("02_b/", [second_y, z]), ("02_b/*", [second_y, z]), ("*y", [y, second_y]),
            ("01_a/02_y.ipynb", [y]), ("./01_a/01_x", [x]), ("*", paths), ("2.2,1", [x, y, z]), ("*x, 2.2", [x, z])]:
        assert notebooks.chosen(run.arguments_of(["--only", wanted]).only, tmp_path) == expected, wanted
    twice = run.arguments_of(["--only", "2.2", "1.1", "--jobs", "1", "--only", "1"]).only
    assert notebooks.chosen(twice, tmp_path) == [x, y, z]
    for without in (["2.2", "1.1,1"], ["2.2", "--only", "1"], ["--jobs", "2", "2.2", "1"]):
        assert notebooks.chosen(run.arguments_of(without).only, tmp_path) == [x, y, z]
    for wanted in ("3", "1.3", "01_x", "01_x.ipynb", "1.", "", "2,3", "y"):
        with pytest.raises(SystemExit, match="no lesson fits '.*'; there are:\n  1.1  01_a/01_x\n"):
            notebooks.chosen(run.arguments_of(["--only", wanted]).only, tmp_path)


def test_a_lesson_split_off_another_comes_after_it_and_has_a_number_of_its_own(tmp_path):
    for name in ("01_a/03_z", "01_a/02b_y", "01_a/02_x", "01_a/02bb_no", "01_a/b_no"):
        make_notebook(tmp_path / f"{name}.ipynb", ["# 1.2b T" if "02b" in name else "# T", "1"])
    x, y, z = paths = notebooks.lessons(tmp_path)
    assert [path.stem for path in paths] == ["02_x", "02b_y", "03_z"]
    assert [notebooks.number_of(path) for path in paths] == ["1.2", "1.2b", "1.3"]
    for wanted, expected in (
            ("1.2", [x]), ("1.2b", [y]), ("1", paths), ("02b_y", None), ("*/02b_*", [y]), ("1.3b", None)):
        if expected is None:
            with pytest.raises(SystemExit, match=f"(?s)no lesson fits '{wanted}'.*\n  1.2b  01_a/02b_y\n"):
                notebooks.chosen([wanted], tmp_path)
        else:
            assert notebooks.chosen(run.arguments_of(["--only", wanted]).only, tmp_path) == expected, wanted
    assert notebooks.navigation(x, tmp_path).endswith("[1.2b T →](02b_y.ipynb)")
    assert notebooks.navigation(z, tmp_path).startswith("[← 1.2b T](02b_y.ipynb)")
    missing = hygiene.missing_lessons("See lessons 1.2b and 1.3b, and 02b_y, 02b_w.", x, tmp_path)
    assert [one.split(": ")[1].split()[0] for one in missing] == ["1.3b", "02b_w"]


# What happens before the set-up: help, and the refusal of what a tool does not know.

def bare(project, name, *arguments):
    """A tool in a Python that has nothing but the standard library, in a course without `.venv`."""
    code = f"""import runpy, sys
sys.path.insert(0, '.')
sys.argv[1:] = {list(arguments)!r}
runpy.run_module('tools.{name}', run_name='__main__', alter_sys=True)"""
    return subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=project, text=True, capture_output=True,
                          encoding="utf-8", timeout=30)


@pytest.mark.parametrize(("name", "says"), [
    ("run", "[LESSONS ...]"), ("lab", "[LESSON]"), ("test", "pytest --help"), ("save", "--allow-sample"),
    ("clean", "build/ and caches"), ("setup", "--tests"), ("badges", "OWNER/REPOSITORY")])
def test_help_is_only_help(project, name, says):
    before = sorted(project.rglob("*"))
    for flag in ("--help", "-h"):
        done = bare(project, name, flag)
        assert done.returncode == 0 and says in done.stdout and not done.stderr, done.stderr
    assert [path for path in sorted(project.rglob("*")) if "__pycache__" not in path.parts] == before


def test_the_help_of_the_benchmarks_can_be_read(monkeypatch, capsys):
    from tests.benchmarks import __main__ as benchmarks

    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit, match="0"):
        benchmarks.main()
    said = capsys.readouterr().out
    assert "usage: python -m tests.benchmarks" in said and "[]" not in said and "tokenizer, train, generate" in said


@pytest.mark.parametrize(("name", "arguments", "says"), [
    ("run", ["--onyl", "2"], "unrecognized arguments: --onyl"), ("run", ["--only", "2"], "no lesson fits '2'"),
    ("lab", ["7.7"], "no lesson fits '7.7'"), ("save", ["--al"], "unrecognized arguments: --al"),
    ("clean", ["--all"], "unrecognized arguments: --all"), ("setup", ["--test"], "unrecognized arguments: --test"),
    ("badges", ["me/it", "--dry"], "unrecognized arguments: --dry")])
def test_what_a_tool_does_not_know_is_refused_before_the_set_up(project, name, arguments, says):
    make_notebook(project / "01_toy/01_good.ipynb", GOOD)
    (project / "build").mkdir()
    done = bare(project, name, *arguments)
    assert done.returncode in (1, 2) and says in done.stderr and "Traceback" not in done.stderr
    assert (project / "build").exists() and not (project / ".venv").exists()


# The lessons under pytest (conftest.py).

def test_pytest_runs_lessons_and_judges_their_outputs(project):
    for file in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / file, project / file)
    path = make_notebook(project / "01_toy/01_good.ipynb", [
        "# Toy", SETUP, "Equal.", "print('same')", "Different.", "print('new')", "Not compared.", "print('new')",
        "Compared only with the real data.", "print('sample')"])
    notebook = notebooks.read(path)
    for cell, text, tags in [(notebook.cells[3], "same", ["nbval-check-output"]),
                             (notebook.cells[5], "old", ["nbval-check-output"]), (notebook.cells[7], "old", []),
                             (notebook.cells[9], "real", ["nbval-check-output", "real-data"])]:
        cell.metadata["tags"], cell.execution_count = tags, 1
        cell.outputs = [nbf.new_output("stream", name="stdout", text=text + "\n")]
    notebooks.write(notebook, path)
    make_notebook(project / "01_toy/02_dies.ipynb", [*DIES, "Text.", "print('never')"])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "--durations=0", "-rA", "01_toy"]
    done = subprocess.run(command, cwd=project, env=environment(project), text=True, capture_output=True,
                          encoding="utf-8", timeout=120)
    verdicts = re.findall(r"^(PASSED|FAILED) 01_toy/(\w+)\.ipynb::Cell (\d)", done.stdout, re.MULTILINE)
    assert sorted(verdicts, key=lambda verdict: verdict[1:]) == [
        ("PASSED", "01_good", "0"), ("PASSED", "01_good", "1"), ("FAILED", "01_good", "2"), ("PASSED", "01_good", "3"),
        ("PASSED", "01_good", "4"), ("PASSED", "02_dies", "0"), ("FAILED", "02_dies", "1")], done.stdout
    assert "2 failed, 5 passed, 1 skipped" in done.stdout
    assert "data: bundled samples in place of the_verdict, gpt2_vocab" in done.stdout
    assert "The kernel died in this cell" in done.stdout
    seconds = re.search(r"([\d.]+)s call +01_toy/02_dies.ipynb::Cell 1", done.stdout).group(1)
    assert float(seconds) < 10, "a dead kernel is noticed at once, not at the time limit"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels are started, not forked")
def test_a_forked_kernel_is_like_a_started_one(tmp_path, monkeypatch):
    def said(client, code):
        out = []
        client.execute_interactive(code, timeout=30, output_hook=lambda message: out.append(message["content"]))
        return "".join(content.get("text", content.get("ename", "")) for content in out)

    monkeypatch.setenv("LLM_TEST_WORD", "heard")
    code = ("import os, sys, numpy\nprint(os.environ['LLM_TEST_WORD'], os.getcwd(), os.getpid(), __name__, "
            "os.path.isfile(os.path.join(sys.path[0], 'warm_kernels.py')), numpy.random.rand())")
    kernels = []
    try:
        for _ in range(2):
            kernels.append(start_new_kernel(kernel_name=":nbval-parent-env", cwd=str(tmp_path)))
        words = [said(client, code).split() for _, client in kernels]
        for manager, (word, folder, pid, name, tools_first, _) in zip([m for m, _ in kernels], words, strict=True):
            assert (word, folder, name, tools_first) == ("heard", str(tmp_path), "__main__", "False")
            assert isinstance(manager.provisioner.process, warm_kernels.Forked) and manager.provisioner.pid == int(pid)
        assert words[0][2] != words[1][2] and words[0][-1] != words[1][-1], "two processes, and other random numbers"

        manager, client = kernels[0]
        threading.Timer(1, manager.interrupt_kernel).start()
        assert "KeyboardInterrupt" in said(client, "import subprocess\nsubprocess.run(['sleep', '60'])")
        client.execute("os._exit(3)")
        deadline = time.monotonic() + 10
        while manager.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not manager.is_alive() and kernels[1][0].is_alive()

        with pytest.raises(RuntimeError, match="died"):  # soon, not after a time limit
            start_new_kernel(kernel_name=":nbval-parent-env", cwd=str(tmp_path / "nowhere"))

        server = warm_kernels.server()
        server.kill()
        server.wait()
        kernels.append(start_new_kernel(kernel_name=":nbval-parent-env", cwd=str(tmp_path)))
        assert said(kernels[-1][1], "print(1 + 1)") == "2\n", "without the server a kernel is started as usual"
    finally:
        for manager, client in kernels:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
        warm_kernels.server.cache_clear()


# The set-up, with pip and the virtual environment played by stand-ins.

@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A course folder without `.venv`; what pip is asked for is noted."""
    asked = []

    def fake_venv(folder):
        python = setup.python_of(folder)
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()

    def fake_pip(folder, *arguments):
        asked.append(list(arguments))
        return fake_pip.statuses.pop(0) if fake_pip.statuses else 0

    fake_pip.statuses, fake_pip.asked = [], asked
    (tmp_path / "tests").mkdir()
    (tmp_path / "requirements.txt").write_text("# course\ntorch>=2.9,<2.14\nnumpy>=2\n", encoding="utf-8")
    (tmp_path / "tests/requirements.txt").write_text("pytest-xdist>=3\n", encoding="utf-8")
    for name, value in [("ROOT", tmp_path), ("VENV", tmp_path / ".venv"), ("make_venv", fake_venv), ("pip", fake_pip),
                        ("has_torch", lambda folder: False), ("wants_cpu_torch", lambda: False)]:
        monkeypatch.setattr(setup, name, value)
    return fake_pip


def test_the_second_set_up_costs_nothing_until_the_requirements_change(fresh):
    python = setup.ensure()
    assert python == setup.python_of(setup.VENV) and fresh.asked == [["-r", "requirements.txt"]]
    setup.ensure()
    assert len(fresh.asked) == 1
    setup.ensure((setup.COURSE, setup.TESTS))
    assert fresh.asked[1:] == [["-r", "requirements.txt", "-r", "tests/requirements.txt"]]
    setup.ensure()
    setup.ensure((setup.COURSE, setup.TESTS))
    assert len(fresh.asked) == 2
    (setup.ROOT / setup.COURSE).write_text("torch>=2.9,<2.15\n", encoding="utf-8")
    setup.ensure()
    assert len(fresh.asked) == 3


def test_a_half_finished_installation_is_not_taken_for_finished(fresh):
    fresh.statuses[:] = [1]
    with pytest.raises(setup.SetupError, match="pip could not install everything"):
        setup.ensure()
    assert not setup.is_installed(setup.VENV, (setup.COURSE,))
    setup.ensure()
    assert setup.is_installed(setup.VENV, (setup.COURSE,)) and len(fresh.asked) == 2
    for damaged in ('{"requirements', "[1]", "null", ""):
        setup.stamp_of(setup.VENV).write_text(damaged, encoding="utf-8")
        assert not setup.is_installed(setup.VENV, (setup.COURSE,))
        setup.ensure()
        assert setup.is_installed(setup.VENV, (setup.COURSE,))


@pytest.mark.parametrize("status", [0, 1], ids=["reached", "not reached"])
def test_without_a_gpu_the_cpu_build_is_tried_first(fresh, monkeypatch, status):
    monkeypatch.setattr(setup, "wants_cpu_torch", lambda: True)
    fresh.statuses[:] = [status]
    setup.ensure()
    first, second = fresh.asked
    assert first[-3:] == ["--index-url", setup.CPU_INDEX, "torch>=2.9,<2.14"] and "--retries" in first
    assert second == ["-r", "requirements.txt"]


def test_clear_words_for_a_python_that_will_not_do(fresh, monkeypatch):
    monkeypatch.setattr(setup, "OLDEST", (99, 0))
    with pytest.raises(setup.SetupError, match=r"needs 99\.0 or newer"):
        setup.ensure()
    with pytest.raises(SystemExit, match=r"set-up: This is Python .*needs 99\.0"):
        setup.enter("tools.run", [])


def test_clear_words_where_virtual_environments_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup.SetupError, match="python3-venv"):
        setup.make_venv(tmp_path / ".venv")
    assert not (tmp_path / ".venv").exists()


def test_no_venv_and_colab_use_the_python_that_runs_and_name_what_it_lacks(fresh, monkeypatch):
    monkeypatch.delenv("LLM_PYTHON", raising=False)
    assert setup.enter("tools.run", ["--no-venv", "--jobs", "2"]) == ["--jobs", "2"]
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert setup.enter("tools.run", []) == []
    (setup.ROOT / setup.COURSE).write_text("torch>=2.9\nno-such-thing>=1  # comment\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks: no-such-thing"):
        setup.enter("tools.run", [])
    assert fresh.asked == []


def test_the_data_line_names_what_these_lessons_load(tmp_path, monkeypatch, capsys):
    for name in ("LLM_TEXT", "LLM_MIRROR", "LLM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path / "data"))
    one = make_notebook(tmp_path / "03_toy/02_one.ipynb", ["# One", SETUP, '`load("mmlu")` is only named', (
        'data.fetch("sms_spam")\nload_tokenizer("gpt2")\nload("the_verdict")\nload("no_such_thing")')])
    assert run.data_asked_for([one]) == ["the_verdict", "gpt2_vocab", "gpt2_encoder", "sms_spam"]
    every = "the_verdict, gpt2_vocab, gpt2_encoder, sms_spam"
    assert run.data_line([one]) == f"to be fetched, else bundled samples: {every}"
    assert run.data_line([one], finished=True) == f"bundled samples in place of {every}"
    monkeypatch.setenv("LLM_MIRROR", str(tmp_path / "nope"))
    monkeypatch.setenv("LLM_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/the-verdict.txt").touch()
    assert run.data_line([one]) == f"real files: the_verdict; bundled samples in place of {every[13:]}"
    assert capsys.readouterr().out.count("LLM_MIRROR: there is no folder") == 1  # not once for each of them
    run.data_line([one], finished=True)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("LLM_TEXT", "mine.txt")
    assert run.data_line([one]).endswith("; lesson 3.2 reads mine.txt (LLM_TEXT)")
    assert run.data_line([]) == "none"

    two = make_notebook(tmp_path / "05_toy/06_two.ipynb", ["# Two", SETUP, "Chats.", (
        "for name in ('x', 'y'):\n    pass\nfor name in (\"oasst1\", \"taskmaster\"):\n    data.load(name)\n"
        "load_base(\"smollm2\")\nprint(f\"{data.fetch('preference_data').name}\")")])
    assert run.data_asked_for([two]) == ["smollm2", "preference_data", "oasst1", "taskmaster"]
    assert "chats" not in run.data_line([two])
    (tmp_path / "data/my_chats").mkdir()
    assert run.data_line([two]).endswith("; lesson 5.6 reads your chats in my_chats")


def test_a_python_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("LLM_PYTHON", "/nowhere/python")
    with pytest.raises(SystemExit, match="LLM_PYTHON is '/nowhere/python', which is no program here"):
        setup.enter("tools.run", [])


def test_another_python_can_be_named(fresh, monkeypatch):
    monkeypatch.setenv("LLM_PYTHON", sys.executable)
    assert setup.enter("tools.run", ["--out", "x"]) == ["--out", "x"] and fresh.asked == []


def test_the_requirement_files_can_be_read(monkeypatch):
    assert setup.torch_requirement() == "torch>=2.9,<2.14"
    assert setup.missing_modules((setup.COURSE, setup.TESTS)) == []


def imported(tree):
    """The names that code imports from packages, but for those in a `try` that does without them."""
    if isinstance(tree, ast.Try) and any("ImportError" in ast.unparse(handler) for handler in tree.handlers):
        return set()
    names = {alias.name for alias in tree.names} if isinstance(tree, ast.Import) else set()
    names |= {tree.module} if isinstance(tree, ast.ImportFrom) and not tree.level else set()
    return {name.split(".")[0] for name in names}.union(*map(imported, ast.iter_child_nodes(tree)))


def with_dependencies(requirements):
    """The names of the packages that these lines of a requirements file bring, theirs included."""
    found, todo = set(), [Requirement(line) for line in requirements if line and not line.startswith("#")]
    while todo:
        name = re.sub("[-_.]+", "-", todo.pop().name).lower()
        if name not in found:
            found.add(name)
            needed = map(Requirement, metadata.requires(name) or [])
            todo += [one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def test_requirements_bring_all_that_the_course_imports():
    """Here the tests' packages are installed too, on a reader's machine they are not."""
    scripts = [path for pattern in ("shared/**/*.py", "tools/**/*.py", "0*/*.py") for path in ROOT.glob(pattern)]
    sources = {path: path.read_text(encoding="utf-8") for path in scripts}
    for path in notebooks.lessons():
        sources[path] = "\n".join(bites.code_of(notebooks.read(path)).values())
    own = {path.stem for path in scripts} | {"shared", "tools", "google", "ipywidgets"}  # the last two: only in Colab
    brought = with_dependencies((ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    package_of = metadata.packages_distributions()
    for path, source in sources.items():
        for name in imported(ast.parse(source)) - own - sys.stdlib_module_names:
            packages = {re.sub("[-_.]+", "-", package).lower() for package in package_of.get(name, [])}
            assert packages & brought, f"{path.relative_to(ROOT)} imports {name}, which requirements.txt does not bring"


# The blocked network of `tools.test --all`.

BLOCKED = """
import socket, threading, sitecustomize
sitecustomize.REAL_CONNECT = lambda self, address: print("reached", address)  # nothing leaves this process
sitecustomize.REAL_GETADDRINFO = lambda *arguments, **options: print("resolved", arguments[0])
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        print("blocked", type(error).__name__)
for address in [("192.0.2.1", 80), ("127.0.0.1", 80), ("localhost", 80), ("example.org", 80)]:
    attempt(socket.socket().connect, address)
for name in ["example.org", "localhost", b"127.0.0.1", None]:
    attempt(socket.getaddrinfo, name, 80)
attempt(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto, b"x", ("192.0.2.1", 80))
"""


def test_the_network_can_be_blocked_for_a_process_and_its_children(tmp_path):
    blocked = test_tool.without_network(dict(os.environ), tmp_path)
    assert "LLM_MIRROR" not in blocked and blocked["https_proxy"] == test_tool.CLOSED_PORT
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BLOCKED!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", child], env=blocked, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "blocked ConnectionRefusedError", "reached ('127.0.0.1', 80)", "reached ('localhost', 80)",
        "blocked ConnectionRefusedError", "blocked gaierror", "resolved localhost", "resolved b'127.0.0.1'",
        "resolved None", "blocked ConnectionRefusedError"], done.stderr


def test_pytest_is_spread_over_two_workers_unless_told_otherwise():
    assert test_tool.pytest_command("python", ["-k", "mask"])[5:] == ["-n", "2", "--dist", "loadfile", "-k", "mask"]
    assert test_tool.pytest_command("python", ["-n0", "-x"])[5:] == ["-n0", "-x"]


# The passes of `tools.test`.

@pytest.fixture
def passes(monkeypatch):
    """A function that plays `tools.test` and gives what each pass would run: title, arguments, environment."""
    seen = []
    monkeypatch.setattr(test_tool, "run", lambda title, command, variables: seen.append((title, command, variables)))
    monkeypatch.setattr(test_tool, "colab_python", lambda: "colab-python")
    monkeypatch.setattr(setup, "enter", lambda *arguments: None)
    monkeypatch.setattr("shared.runtime.autocast_dtype", lambda device: None)  # a CPU without bfloat16 units

    def play(*arguments):
        seen.clear()
        assert test_tool.main(list(arguments)) == 0
        return {title: (command, variables) for title, command, variables in seen}

    return play


def test_quick_runs_no_lesson_and_no_slow_test_but_what_is_named(passes, monkeypatch, capsys):
    monkeypatch.setattr(test_tool, "changed_lessons", lambda: ["01_a/01_b.ipynb"])
    (command, _) = passes("--quick", "-k", "mask")["fast tests"]
    assert command[command.index("loadfile") + 1] == "tests"
    assert command[-3:] == [f"--ignore={test_tool.SLOW[-1]}", "-k", "mask"]
    assert 'make test ARGS="01_a/01_b.ipynb"' in capsys.readouterr().out
    assert passes("--quick", "tests/test_judge.py")["fast tests"][0][-2:] == ["loadfile", "tests/test_judge.py"]
    assert all((ROOT / path).is_file() for path in test_tool.SLOW)
    with pytest.raises(SystemExit, match="2"):
        passes("--quick", "--all")


def test_changed_lessons_are_those_that_git_names(tmp_path, monkeypatch):
    monkeypatch.setattr(test_tool, "ROOT", tmp_path)
    monkeypatch.setattr(test_tool.notebooks, "lessons", lambda: sorted(tmp_path.glob("0?_*/*.ipynb")))
    for name in ("01_same", "02_other", "03_new"):
        make_notebook(tmp_path / f"01_toy/{name}.ipynb", GOOD)
    assert test_tool.changed_lessons() == []  # no repository here
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "01_toy/01_same.ipynb", "01_toy/02_other.ipynb"],
                    [*who, "-c", "core.hooksPath=", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    make_notebook(tmp_path / "01_toy/02_other.ipynb", BAD)
    (tmp_path / "README.md").touch()
    assert test_tool.changed_lessons() == ["01_toy/02_other.ipynb", "01_toy/03_new.ipynb"]


def test_all_runs_every_number_format(passes, monkeypatch):
    monkeypatch.delenv("LLM_DTYPE", raising=False)
    assert list(passes("-k", "mask")) == ["ruff", "lessons and tests"]
    whole = passes("--all", "-x")
    assert list(whole) == ["ruff", "lessons and tests", "lessons and tests of training in bfloat16",
                           "without network, mirror and data", "with Colab's versions"]
    command, variables = whole["lessons and tests of training in bfloat16"]
    assert variables["LLM_DTYPE"] == "bfloat16" and command[-4:] == ["05_instruction_finetune", *test_tool.TRAINING]
    assert {"-x", "01_working_with_text", "03_gpt"} < set(command)
    assert not any("LLM_DTYPE" in variables for title, (_, variables) in whole.items() if "in bfloat16" not in title)
    command, _ = passes("--all", "tests/test_files.py")["lessons and tests of training in bfloat16"]
    assert command[-1] == "tests/test_files.py"  # a part that is named stays that part

    monkeypatch.setenv("LLM_DTYPE", "bfloat16")
    whole = passes("--all")
    assert whole["lessons and tests"][1]["LLM_DTYPE"] == "bfloat16"
    assert whole["lessons and tests of training in float32"][1]["LLM_DTYPE"] == "float32" and len(whole) == 5
    monkeypatch.setenv("LLM_DTYPE", "float16")
    assert len(passes("--all")) == 6
