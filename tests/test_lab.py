"""`make lab`: the learner's copy; in a real JupyterLab and browser, the way from lesson to lesson."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat.v4 as nbf
import psutil
import pytest
import zmq
from nbformat.sign import NotebookNotary
from playwright.sync_api import BrowserType, Error, TimeoutError, sync_playwright

from tools import hygiene, lab, notebooks

LESSONS = [path.relative_to(notebooks.ROOT).as_posix() for path in notebooks.lessons()]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "microsoft-edge")
PATIENCE = 60_000  # milliseconds for one click to take effect, on a busy machine
IS_OPEN = """path => {
    const context = window.jupyterapp?.shell.currentWidget?.context;
    return context?.isReady && context.path === path;
}"""
ITS_WIDTH = """() => {
    const image = window.jupyterapp.shell.currentWidget.node.querySelector('.jp-RenderedSVG img');
    return image?.naturalWidth && [image.naturalWidth, image.clientWidth, image.parentElement.clientWidth];
}"""
DRAWING = {"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="9"/>', "text/plain": "a line"}
SHOWS_BADGE = """() => {
    const image = window.jupyterapp.shell.currentWidget.node.querySelector('img[alt="Open in Colab"]');
    return image?.naturalWidth > 0;
}"""
IN_SIGHT = '{"windowingMode": "full"}'  # JupyterLab builds only the cells in sight: half of this test's time
TO_THE_END = """() => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    if (notebook.scrollToItem) {  // a promise that waits long: not returned
        notebook.activeCellIndex = notebook.widgets.length - 1;
        notebook.scrollToItem(notebook.activeCellIndex, 'end');
    }
}"""


@contextlib.contextmanager
def chromium():
    """A browser of the Chromium family: one on the PATH, Playwright's own, or an installed Chrome or Edge."""
    on_path = [{"executable_path": found} for name in BROWSERS if (found := shutil.which(name))]
    with sync_playwright() as playwright:
        for choice in (*on_path, {}, {"channel": "chrome"}, {"channel": "msedge"}):
            try:
                browser = playwright.chromium.launch(args=["--disable-gpu"], **choice)
            except Error:
                continue
            yield browser
            browser.close()
            return
        words = "SKIPPED LOUDLY: no Chromium, Chrome or Edge could be started, so nobody clicked through JupyterLab"
        warnings.warn(words, stacklevel=2)
        pytest.skip(words)


@contextlib.contextmanager
def jupyterlab(folder):
    """`python -m tools.lab` on a free port, in a course of its own, whose first lesson begins with a saved drawing, and
    with settings folders of its own. Gives the address and the token.
    """
    course = folder / "course"
    for path in [*(notebooks.ROOT / name for name in ("shared", "tools")), *notebooks.ROOT.glob("0?_*")]:
        shutil.copytree(path, course / path.name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for path in [*notebooks.ROOT.glob("*.md"), notebooks.ROOT / "requirements.txt"]:
        shutil.copy(path, course)
    shutil.copytree(notebooks.ROOT / "pictures", course / "pictures")
    first = notebooks.read(course / LESSONS[0])
    first.cells[1].outputs = [nbf.new_output("execute_result", data=DRAWING, execution_count=1)]
    notebooks.write(first, course / LESSONS[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
                                                 "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    settings = folder / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(IN_SIGHT, encoding="utf-8")
    token, log = secrets.token_hex(8), folder / "log"
    command = [sys.executable, "-m", "tools.lab", "--no-venv", "--no-browser", f"--port={port}",
               "--port-retries=0", f"--IdentityProvider.token={token}", "--allow-root",
               "--LabApp.expose_app_in_browser=True"]
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=course, env=os.environ | own, stdout=output, stderr=output)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                assert server.poll() is None, log.read_text(encoding="utf-8")
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/login", timeout=5):
                    break
                time.sleep(0.25)
            yield address, token
        finally:
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:  # JupyterLab and its kernels
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait(30)


def wait_for_file(page, path, patience=PATIENCE):
    page.wait_for_function(IS_OPEN, arg=path, timeout=patience)


def open_by(act, page, path):
    """Do what opens a file, and wait until it is open.

    While a list or cells that come into sight still move, JupyterLab can miss a click, as it can miss a reader's: so
    there are three attempts.
    """
    for attempt in range(3):
        try:
            act(page, path)
            return wait_for_file(page, path, PATIENCE / 3)
        except TimeoutError:
            if attempt == 2:
                raise


def click_last_link(page, path):
    """JupyterLab makes a link its own some time after it is drawn: then its address lies below /files/."""
    page.evaluate(TO_THE_END)
    in_front = page.locator(".jp-MainAreaWidget:not(.lm-mod-hidden)")
    in_front.locator(f".jp-RenderedMarkdown a[href*='/files/{path}']").last.click(timeout=PATIENCE / 3)


def open_from_the_list(page, name):
    page.locator(".jp-FileBrowser .jp-BreadCrumbs-home").click(timeout=PATIENCE / 3)
    for part in name.split("/"):
        page.locator(".jp-DirListing-item", has_text=part).dblclick(timeout=PATIENCE / 3)


def test_a_reader_clicks_from_lesson_to_lesson_over_the_ends_of_chapters_and_to_the_readme(tmp_path):
    """That each lesson ends with such a link is tested below, without a browser."""
    steps = list(zip(LESSONS, LESSONS[1:], strict=False))
    ends_of_chapters = [step for step in steps if step[0][:2] != step[1][:2]]
    with chromium() as browser, jupyterlab(tmp_path) as (address, token):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        elsewhere = []
        page.on("request", lambda request: elsewhere.append(request.url)
                if re.match("https?:", request.url) and not request.url.startswith(address) else None)
        page.goto(f"{address}/?token={token}")  # what JupyterLab opens in the reader's browser
        page.evaluate("window.loadedOnce = true")
        wait_for_file(page, LESSONS[0])
        page.wait_for_function(SHOWS_BADGE)
        drawn, shown, room = page.wait_for_function(ITS_WIDTH).json_value()
        assert drawn > room >= shown, f"a drawing {shown} pixels wide where {room} are free"
        for lesson, following in [steps[0], *ends_of_chapters, steps[-1]]:
            if lesson != LESSONS[0]:
                open_by(open_from_the_list, page, lesson)
            open_by(click_last_link, page, following)
            page.wait_for_function(SHOWS_BADGE)

        open_by(open_from_the_list, page, "README.md")
        open_by(click_last_link, page, LESSONS[3])
        assert sorted(path.name for path in (tmp_path / "course/work/02_attention").glob("*.ipynb")) == [
            Path(name).name for name in LESSONS if name.startswith("02")]  # and this is where all of it happened
        assert page.evaluate("window.loadedOnce") and len(page.context.pages) == 1, "a link left JupyterLab"
        assert page.locator(".jp-Dialog").count() == 0
        said = page.locator(".Toastify__toast").all_inner_texts()
        assert not said, f"JupyterLab asks or tells: {said}"
        assert not elsewhere, f"JupyterLab asked other hosts: {elsewhere}"


def test_without_a_browser_the_report_says_so(monkeypatch):
    def refuse(*arguments, **options):
        raise Error("there is none")

    monkeypatch.setattr(BrowserType, "launch", refuse)
    with pytest.warns(match="SKIPPED LOUDLY: no Chromium"), pytest.raises(pytest.skip.Exception, match="no Chromium"):
        with chromium():
            pass


def test_every_lesson_ends_with_a_link_to_the_next():
    for path, following in zip(notebooks.lessons(), notebooks.lessons()[1:]):
        links = re.findall(r"\]\(([^)]*)\)", notebooks.read(path).cells[-1].source)
        assert [(path.parent / link).resolve() for link in links] == [following], notebooks.name_of(path)


@pytest.mark.parametrize(("wanted", "page"), [
    (None, LESSONS[0]), ("2.1", "02_attention/01_simple_self_attention.ipynb"), ("README.md", "README.md"),
    ("2", "02_attention/01_simple_self_attention.ipynb"), (LESSONS[3], LESSONS[3]), ("*loading", LESSONS[1]),
    (str(notebooks.ROOT / LESSONS[2]), LESSONS[2]),
])
def test_lab_opens_the_lesson_that_is_named(wanted, page):
    if wanted == "*loading":
        page = next(name for name in LESSONS if name.endswith("loading.ipynb"))
    assert lab.path_of(wanted) == page


@pytest.mark.parametrize(("arguments", "lesson", "options"), [
    (["5.3", "--no-browser"], "5.3", ["--no-browser"]), (["--allow-root", "5.3"], "5.3", ["--allow-root"]),
    (["--port", "8899", "README.md"], "README.md", ["--port", "8899"]), (["--port", "8899"], None, ["--port", "8899"]),
    (["2", "--port", "8899"], "2", ["--port", "8899"]), ([], None, []),
])
def test_the_lesson_may_stand_before_the_options_or_behind(arguments, lesson, options):
    assert lab.lesson_and_options(arguments) == (lesson, options)


def test_lab_names_the_lessons_when_there_is_no_such_one(tmp_path):
    with pytest.raises(SystemExit, match="(?s)no lesson fits '9.9'; there are:.*2.1  02_attention/01_simple"):
        lab.path_of("9.9")
    (tmp_path / "a.ipynb").touch()
    with pytest.raises(SystemExit, match="is not in the course folder"):
        lab.path_of(str(tmp_path / "a.ipynb"))


def test_what_the_reader_says_goes_before_our_settings(tmp_path):
    assert "--LabApp.news_url=None" in lab.command(tmp_path, "README.md", [])
    command = lab.command(tmp_path, "a b/ü.ipynb", ["--port=9", "--LabApp.news_url=https://example.org"])
    assert "--LabApp.default_url=/lab/tree/a%20b/%C3%BC.ipynb" in command
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert [option for option in command if "news_url" in option] == ["--LabApp.news_url=https://example.org"]
    assert command[-2] == "--port=9"


def test_jupyterlab_says_little_and_what_it_sends_to_kernels_is_encrypted(tmp_path, monkeypatch):
    quiet, encrypted = "--Application.log_level=ERROR", "--KernelManager.transport_encryption=auto"
    assert {quiet, encrypted} <= set(lab.command(tmp_path, "README.md", []))
    loud = lab.command(tmp_path, "README.md", ["--Application.log_level=INFO"])
    assert quiet not in loud and loud[-1] == "--Application.log_level=INFO"
    monkeypatch.setattr(zmq, "has", lambda what: False)  # a build of ZeroMQ that cannot
    assert encrypted not in lab.command(tmp_path, "README.md", [])


@pytest.mark.parametrize(("name", "says"), [("LLM_TEXT", "No such file"), ("LLM_BASE", "does not exist")])
def test_a_setting_that_names_what_is_not_there_is_told_before_jupyterlab_opens(tmp_path, monkeypatch, name, says):
    monkeypatch.setattr(lab.setup, "enter", lambda *arguments: None)
    monkeypatch.setattr(lab, "copy_course", lambda *arguments: ([], []))
    monkeypatch.setenv(name, str(tmp_path / "mine"))
    with pytest.raises(SystemExit, match=f"^{name}: .*{says}"):
        lab.main(["2.1"])


# The learner's copy.

@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of two lessons, and its copy."""
    monkeypatch.setattr(lab, "sign", lambda paths: None)  # they are no notebooks
    for name in ("01_a/01_x.ipynb", "01_a/02_y.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"first {name}", encoding="utf-8")
    (tmp_path / "README.md").write_text("first", encoding="utf-8")
    work = tmp_path / "work"
    written, old = lab.copy_course(tmp_path, work)
    assert [path.relative_to(work).as_posix() for path in written] == ["01_a/01_x.ipynb", "01_a/02_y.ipynb"]
    assert old == [] and (work / "README.md").read_text(encoding="utf-8") == "first"
    return tmp_path


def test_what_a_learner_has_written_is_never_overwritten(course, capsys):
    x, y, work = course / "01_a/01_x.ipynb", course / "01_a/02_y.ipynb", course / "work"
    mine = work / "01_a/01_x.ipynb"
    assert lab.copy_course(course, work) == ([], [])
    mine.write_text("mine", encoding="utf-8")
    assert lab.copy_course(course, work) == ([], [])  # the course has nothing newer
    for path in (x, y, course / "README.md"):
        path.write_text("second", encoding="utf-8")
    for _ in range(2):
        written, old = lab.copy_course(course, work)
        assert old == [x] and mine.read_text(encoding="utf-8") == "mine"
        assert all((work / name).read_text(encoding="utf-8") == "second" for name in ("01_a/02_y.ipynb", "README.md"))
    assert lab.copy_course(course, work, "01_a/01_x.ipynb") == ([mine], [])
    assert mine.read_text(encoding="utf-8") == "second"
    assert mine.with_name("01_x-1.ipynb").read_text(encoding="utf-8") == "mine"
    assert "01_x-1.ipynb" in capsys.readouterr().out
    mine.write_text("mine again", encoding="utf-8")
    lab.copy_course(course, work, "01_a/01_x.ipynb")  # fresh, although the course's is the same as before
    assert mine.with_name("01_x-2.ipynb").read_text(encoding="utf-8") == "mine again"
    mine.unlink()
    assert lab.copy_course(course, work)[0] == [mine]  # what is missing comes back


def test_the_learners_copy_is_opened_and_the_course_when_asked_for(course, monkeypatch, capsys):
    started, signed = [], []
    monkeypatch.setattr(lab, "ROOT", course)
    monkeypatch.setattr(lab.setup, "enter", lambda *arguments: None)
    monkeypatch.setattr(lab, "sign", lambda new: signed.append([path.relative_to(course).as_posix() for path in new]))
    monkeypatch.setattr(lab.subprocess, "Popen", lambda command, cwd: started.append((command, cwd)) or Process())

    class Process:
        def wait(self):
            return 0

    mine, theirs = course / "work/01_a/02_y.ipynb", course / "01_a/02_y.ipynb"
    mine.write_text("mine", encoding="utf-8")
    theirs.write_text("second", encoding="utf-8")
    assert lab.main(["1.2", "--port=9"]) == 0
    command, folder = started.pop()
    assert folder == course / "work" and "--LabApp.default_url=/lab/tree/01_a/02_y.ipynb" in command
    assert f"--ServerApp.root_dir={folder}" in command and command[-1] == "--port=9"
    assert mine.read_text(encoding="utf-8") == "mine" and signed.pop() == []
    said = capsys.readouterr().out
    assert "newer version of 1.2" in said and 'make lab ARGS="--fresh 1.2"' in said
    lab.main(["--fresh", "work/01_a/02_y.ipynb"])  # as the shell completes it
    assert mine.read_text(encoding="utf-8") == "second" and signed.pop() == ["work/01_a/02_y.ipynb"]
    assert "newer version" not in capsys.readouterr().out
    mine.write_text("mine", encoding="utf-8")
    lab.main(["1.2", "--course"])
    assert started.pop()[1] == course and signed.pop() == ["01_a/01_x.ipynb", "01_a/02_y.ipynb"]
    lab.main(["work/01_a/02_y.ipynb"])  # as the shell completes it
    assert "--LabApp.default_url=/lab/tree/01_a/02_y.ipynb" in started.pop()[0]
    (course / "shared").mkdir()
    (course / "shared/gpt.py").touch()
    with pytest.raises(SystemExit, match='your copy has no shared/gpt.py.*make lab ARGS="shared/gpt.py --course"'):
        lab.main(["shared/gpt.py"])


def test_a_lesson_that_was_renamed_leaves_no_old_copy_but_the_learners(course):
    work = course / "work"
    (work / "01_a/01_x.ipynb").write_text("mine", encoding="utf-8")
    for name in ("01_x", "02_y"):
        (course / f"01_a/{name}.ipynb").rename(course / f"01_a/1{name[1:]}.ipynb")
    for _ in range(2):
        lab.copy_course(course, work)
        assert sorted(path.name for path in work.glob("01_a/*")) == ["01_x.ipynb", "11_x.ipynb", "12_y.ipynb"]


def test_jupyter_trusts_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    cell = nbf.new_code_cell("x", outputs=[nbf.new_output("display_data", data=DRAWING)])
    notebooks.write(nbf.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    read = notebooks.read(tmp_path / "a.ipynb")
    assert not NotebookNotary().check_signature(read)
    lab.sign([tmp_path / "a.ipynb"])
    assert NotebookNotary().check_signature(read)


def test_a_lesson_that_stands_there_from_before_is_the_learners(course):
    (course / "work" / lab.ORIGINS).unlink()
    assert lab.copy_course(course, course / "work")[1] == []  # equal to the course's: nothing to say
    (course / "01_a/01_x.ipynb").write_text("second", encoding="utf-8")
    (course / "work" / lab.ORIGINS).unlink()
    assert lab.copy_course(course, course / "work")[1] == [course / "01_a/01_x.ipynb"]


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": 1}', None])
def test_a_damaged_note_costs_nothing(course, content):
    (course / "work/01_a/01_x.ipynb").write_text("mine", encoding="utf-8")
    note = course / "work" / lab.ORIGINS
    note.write_bytes(content) if content is not None else (note.unlink(), note.symlink_to(course / "README.md"))
    assert lab.copy_course(course, course / "work") == ([course / "work/01_a/02_y.ipynb"], [course / "01_a/01_x.ipynb"])
    assert (course / "work/01_a/01_x.ipynb").read_text(encoding="utf-8") == "mine"
    assert (course / "README.md").read_text(encoding="utf-8") == "first"  # no link is followed
    assert lab.copy_course(course, course / "work")[0] == []


def test_a_page_that_a_learner_has_changed_stays_too(course, monkeypatch, capsys):
    mine = course / "work/README.md"
    mine.write_text("my notes", encoding="utf-8")
    assert lab.copy_course(course, course / "work") == ([], [])
    (course / "README.md").write_text("second", encoding="utf-8")
    assert lab.copy_course(course, course / "work") == ([], [course / "README.md"])
    assert mine.read_text(encoding="utf-8") == "my notes"
    lab.copy_course(course, course / "work", "README.md")
    assert mine.read_text(encoding="utf-8") == "second"
    assert mine.with_name("README-1.md").read_text(encoding="utf-8") == "my notes"


def test_links_in_the_copy_are_replaced_and_never_written_through(course, tmp_path):
    x, y = course / "work/01_a/01_x.ipynb", course / "work/01_a/02_y.ipynb"
    elsewhere = tmp_path / "elsewhere.ipynb"
    x.rename(elsewhere)
    x.symlink_to(elsewhere)
    y.unlink()
    y.symlink_to(course / "01_a/02_y.ipynb")  # the course's own
    for name in ("01_x", "02_y"):
        (course / f"01_a/{name}.ipynb").write_text("second", encoding="utf-8")
    assert lab.copy_course(course, course / "work") == ([x, y], [])
    assert not x.is_symlink() and not y.is_symlink() and elsewhere.read_text(encoding="utf-8").startswith("first")


def test_a_copy_that_was_not_signed_is_made_again(course, monkeypatch):
    def killed(paths):
        raise KeyboardInterrupt

    (course / "01_a/01_x.ipynb").write_text("second", encoding="utf-8")
    monkeypatch.setattr(lab, "sign", killed)
    with pytest.raises(KeyboardInterrupt):
        lab.copy_course(course, course / "work")
    signed = []
    monkeypatch.setattr(lab, "sign", signed.extend)
    lab.copy_course(course, course / "work")
    assert signed == [course / "work/01_a/01_x.ipynb"]


def test_killed_while_it_copies_it_leaves_no_half_lesson(course, monkeypatch):
    def half(source, copy):
        Path(copy).write_text(source.read_text(encoding="utf-8")[:3], encoding="utf-8")
        raise KeyboardInterrupt

    whole = lab.shutil.copyfile
    for name in ("01_x", "02_y"):
        (course / f"01_a/{name}.ipynb").write_text("second", encoding="utf-8")
    (course / "work/01_a/02_y.ipynb").unlink()
    monkeypatch.setattr(lab.shutil, "copyfile", half)
    with pytest.raises(KeyboardInterrupt):
        lab.copy_course(course, course / "work")
    monkeypatch.setattr(lab.shutil, "copyfile", whole)
    assert lab.copy_course(course, course / "work")[1] == []
    assert {path.read_text(encoding="utf-8") for path in (course / "work").rglob("*.ipynb*")} == {"second"}


def test_two_at_once_take_turns(course):
    for n in range(3, 40):
        (course / f"01_a/{n:02}_z.ipynb").write_text("x" * 100_000, encoding="utf-8")
    with ThreadPoolExecutor(4) as pool:
        for written, old in pool.map(lambda _: lab.copy_course(course, course / "work"), range(4)):
            assert old == [] and len(written) in (0, 37)


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda work: work.rename(work.with_name("other")) and work.write_text("x"), "work cannot be made ready for "),
    (lambda work: (work / "01_a/01_x.ipynb").unlink() or (work / "01_a/01_x.ipynb").mkdir(), "01_x.ipynb"),
    (lambda work: work.rename(work.with_name("other")) and work.symlink_to(work.parents[1]), "would not find `shared`"),
    (lambda work: work.rename(work.with_name("other")) and work.symlink_to("nowhere"), "cannot be made ready"),
])
def test_what_is_in_the_way_of_the_copy_is_one_sentence(course, monkeypatch, spoil, says):
    monkeypatch.setattr(lab, "ROOT", course)
    monkeypatch.setattr(lab.setup, "enter", lambda *arguments: None)
    spoil(course / "work")
    with pytest.raises(SystemExit, match=says):
        lab.main(["1.1"])


def test_nothing_in_the_copy_leads_out_of_it(tmp_path):
    lab.copy_course(notebooks.ROOT, tmp_path)
    for page in ("README.md", "CONTRIBUTING.md", "RESULTS.md", "shared/course_base/README.md"):
        wrong = hygiene.wrong_with_prose((tmp_path / page).read_text(encoding="utf-8"), tmp_path / page, tmp_path)
        assert not wrong, page
    for path in notebooks.lessons(tmp_path):
        for cell in notebooks.read(path).cells:
            wrong = hygiene.wrong_with_prose(cell.source, path, tmp_path) if cell.cell_type == "markdown" else []
            assert not [sentence for sentence in wrong if "leads nowhere" in sentence or "picture" in sentence], path


def test_git_the_linter_and_the_tests_do_not_look_into_the_copy():
    assert "/work/" in (notebooks.ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    settings = (notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"./work"' in settings and 'testpaths = ["tests", "0[0-9]_*"]' in settings
