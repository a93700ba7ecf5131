"""Every lesson as it is saved: what its outputs must not hold, what its structure must be (tools/hygiene.py)."""

import nbformat.v4 as nbf
import pytest

from tests import bites
from tools import hygiene, notebooks

LESSONS = notebooks.lessons()


@pytest.mark.parametrize("path", LESSONS, ids=[notebooks.name_of(path) for path in LESSONS])
def test_hygiene(path):
    found = hygiene.violations(path)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("path", LESSONS, ids=[notebooks.name_of(path) for path in LESSONS])
def test_the_list_of_mistakes_still_fits_its_lesson(path):
    """Each text that tests/bites replaces is there as often as it says: known in a second, before any lesson runs."""
    mutations, answers, changes, left_out = bites.load_bites(bites.bites_file(path))
    cells = bites.without(bites.smaller(bites.code_of(notebooks.read(path)), changes), left_out)
    for mutation in mutations:
        bites.mutated_cells(mutation, cells)
    assert set(answers) <= set(bites.stubs_in(cells))


def test_the_setup_cell_is_the_same_everywhere():
    assert LESSONS
    others = [notebooks.name_of(path) for path in LESSONS for cell in notebooks.read(path).cells
              if "setup" in notebooks.tags(cell) and cell.source != notebooks.SETUP_CELL]
    assert not others, f"not the cell of tools/setup_cell.py (python -m tools.carry puts it there): {others}"


def test_all_badges_name_the_same_repository():
    repositories = {hygiene.COLAB_LINK.search(notebooks.read(path).cells[0].source).group(1) for path in LESSONS}
    assert len(repositories) == 1, repositories


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", "CONTRIBUTING.md", "shared/course_base/README.md"])
def test_pages_lead_to_files_and_lessons_that_exist(page):
    path = notebooks.ROOT / page
    assert not hygiene.wrong_with_prose(path.read_text(encoding="utf-8"), path, notebooks.ROOT)


def test_code_names_no_lesson_that_is_not_there():
    for path in [*notebooks.ROOT.glob("shared/**/*.py"), *notebooks.ROOT.glob("0?_*/*.py")]:
        assert not hygiene.missing_lessons(path.read_text(encoding="utf-8"), path, notebooks.ROOT), path


# The rules tested, each on a made-up notebook that breaks it.

BADGE = hygiene.COLAB_BADGE + "me/it/blob/main/01_toy/01_a.ipynb)"
LINKS = "[all lessons](../README.md#the-lessons) · [1.2 Next →](02_b.ipynb)"


def good_notebook():
    fold = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["solution", "hide-input"]}
    cells = [
        nbf.new_markdown_cell(f"# Toy\n\n{BADGE}\n\n{LINKS}\n\n[next](02_b.ipynb#top), [a](https://b.org)"),
        nbf.new_code_cell("import sys", metadata=hygiene.SETUP_METADATA),
        nbf.new_markdown_cell("<details><summary>Hint</summary>`<details>` and `[x](y)` are code</details>"),
        nbf.new_code_cell("print(1 / 2)", outputs=[stream("a/b /50 0.5 and/or\n")]),
        nbf.new_code_cell('#@title Solution 1.1 (double-click to open) { display-mode: "form" }\nx = 1', metadata=fold),
    ]
    return hygiene.clean(nbf.new_notebook(cells=cells))


def violations(notebook, tmp_path):
    folder = tmp_path / "01_toy"
    folder.mkdir(exist_ok=True)
    notebooks.write(nbf.new_notebook(cells=[nbf.new_markdown_cell("# 1.2 Next")]), folder / "02_b.ipynb")
    (tmp_path / "README.md").touch()
    (tmp_path / "tools").mkdir(exist_ok=True)
    (tmp_path / notebooks.BADGE).touch()
    notebooks.write(notebook, folder / "01_a.ipynb")
    return hygiene.violations(folder / "01_a.ipynb", tmp_path)


def test_a_good_notebook_breaks_no_rule(tmp_path):
    assert violations(good_notebook(), tmp_path) == []


def stream(text, name="stdout"):
    return nbf.new_output("stream", name=name, text=text)


def picture(kind, text="{}"):
    return nbf.new_output("display_data", data={kind: text})


@pytest.mark.parametrize("source", [
    "Lessons 1.1 and 1.2, and section 9.9 of a book; `01_toy/02_b` and 02_b.",
    "[a](https://example.org/x), [b](#here), [c](../tools/colab_badge.svg), [d](mailto:a@b.org)",
    "![x](../tools/colab_badge.svg) ![y](data:image/png;base64,AA==)",
])
def test_links_and_names_of_lessons_that_exist_are_fine(source, tmp_path):
    notebook = good_notebook()
    notebook.cells[2].source = source
    assert violations(notebook, tmp_path) == []


@pytest.mark.parametrize(("change", "expected"), [
    (lambda nb: nb.cells[3].update(execution_count=7), "counts are not 1..n"),
    (lambda nb: nb.cells[3].update(outputs=[stream("x", "stderr")]), "saved stderr"),
    (lambda nb: nb.cells[3].update(outputs=[nbf.new_output("error", ename="E", evalue="v")]), "a saved error: E: v"),
    (lambda nb: nb.cells[3].update(outputs=[picture("application/vnd.jupyter.widget-view+json")]), "a saved widget"),
    (lambda nb: nb.cells[3].update(outputs=[stream("UserWarning: x")]), "a saved warning"),
    (lambda nb: nb.cells[3].update(outputs=[stream("'/home/me/x'")]), "a path of one machine"),
    (lambda nb: nb.cells[3].update(outputs=[stream("C:\\Users\\me")]), "a path of one machine"),
    (lambda nb: nb.cells[3].update(outputs=[stream("<f at 0x7f001234>")]), "an object's address"),
    (lambda nb: nb.cells[3].update(outputs=[stream("x" * 501_000)]), "at most 500"),
    (lambda nb: nb.cells[3].update(source=" "), "an empty code cell"),
    (lambda nb: nb.cells[3].update(source="if scale() == 'quick':\n    pass"), "branches on the scale"),
    (lambda nb: nb.cells[3].metadata.update(execution={}), "metadata of one run"),
    (lambda nb: nb.cells[4].metadata.update(tags=["solution"]), "not folded"),
    (lambda nb: nb.cells[4].metadata.pop("cellView"), "not folded"),
    (lambda nb: nb.cells[4].update(source="x = 1"), "first line is not #@title"),
    (lambda nb: nb.cells[2].update(source="<details><summary>x</summary>"), "<details> is not closed"),
    (lambda nb: nb.cells[2].update(source="![x](https://example.org/a.png)"), "a picture from elsewhere"),
    (lambda nb: nb.cells[2].update(source="<img alt='x' src='https://example.org/a.png'>"), "a picture from elsewhere"),
    (lambda nb: nb.cells[2].update(source="![x](//example.org/a.png)"), "a picture from elsewhere"),
    (lambda nb: nb.cells[3].update(source="Image(url='https://example.org/a.png')"), "a picture from elsewhere"),
    (lambda nb: nb.cells[3].update(source="HTML('<img src=https://example.org/a.png>')"), "a picture from elsewhere"),
    (lambda nb: nb.cells[3].update(outputs=[picture("text/html", "<img src='http://b.org/a'>")]), "from elsewhere"),
    (lambda nb: nb.cells[3].update(outputs=[picture("image/svg+xml", "<image href='//b.org/a'/>")]), "from elsewhere"),
    (lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("../tools", "https://b.org")), "from elsewhere"),
    (lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("![Open in Colab]", "![]")), "one Colab badge"),
    (lambda nb: nb.cells[2].update(source="![x](missing.svg)"), "a picture that does not exist"),
    (lambda nb: nb.cells[2].update(source="[x](../02_b/01_c.ipynb)"), "a link that leads nowhere"),
    (lambda nb: nb.cells[2].update(source="[![x](02_b.ipynb)](missing.md)"), "a link that leads nowhere: missing.md"),
    (lambda nb: nb.cells[2].update(source="[x][y]\n\n[y]: missing.md"), "a link that leads nowhere: missing.md"),
    (lambda nb: nb.cells[2].update(source="Lesson 1.3 tells."), "a lesson that is not there: 1.3"),
    (lambda nb: nb.cells[2].update(source="See lessons 1.1 and 5.3."), "a lesson that is not there: 5.3"),
    (lambda nb: nb.cells[2].update(source="(lessons 1.1,\n1.2 to 1.4)"), "a lesson that is not there: 1.4"),
    (lambda nb: nb.cells[2].update(source="Lesson 1.2 (in preparation) goes on."), "not there: in preparation"),
    (lambda nb: nb.cells[2].update(source="Then `05_chat/01_page` shows it."), "not there: 05_chat/01_page"),
    (lambda nb: nb.cells[3].update(source="x = 1  # as in lesson 3.2"), "a lesson that is not there: 3.2"),
    (lambda nb: nb.cells[0].update(source=nb.cells[0].source.replace("01_a", "01_b")), "one Colab badge"),
    (lambda nb: nb.cells[1].metadata.update(tags=[]), "one cell with the tag 'setup'"),
    (lambda nb: nb.cells.__setitem__(2, nbf.new_code_cell("y")), "third code cell in a row"),
    (lambda nb: nb.metadata.update(widgets={}), "metadata of the notebook"),
    (lambda nb: nb.metadata.update(kernelspec={"name": "mine", "display_name": "x"}), "kernelspec is not python3"),
    (lambda nb: nb.metadata.update(language_info={"name": "python", "version": "3"}), "more than the name"),
])
def test_a_broken_rule_is_named(change, expected, tmp_path):
    notebook = good_notebook()
    change(notebook)
    assert expected in "\n".join(violations(notebook, tmp_path))
