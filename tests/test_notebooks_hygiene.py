"""Every lesson as it is saved: what its outputs must not hold, what its structure must be (tools/hygiene.py)."""

import re

import nbformat.v4 as nbf
import pytest

from tools import hygiene, notebooks

LESSONS = notebooks.lessons()


@pytest.mark.parametrize("path", LESSONS, ids=[notebooks.name_of(path) for path in LESSONS])
def test_hygiene(path):
    found = hygiene.violations(path)
    assert not found, "\n" + "\n".join(found)


def test_the_setup_cell_is_the_same_everywhere():
    assert LESSONS
    others = [notebooks.name_of(path) for path in LESSONS for cell in notebooks.read(path).cells
              if "setup" in notebooks.tags(cell) and cell.source != notebooks.SETUP_CELL]
    assert not others, f"not the cell of tools/setup_cell.py (python -m tools.carry puts it there): {others}"


def test_all_badges_name_the_same_repository():
    repositories = {hygiene.COLAB_LINK.search(notebooks.read(path).cells[0].source).group(1) for path in LESSONS}
    assert len(repositories) == 1, repositories


LESSON_NAMED = re.compile(r"[Ll]essons?((?:(?:,|,? and|,? or| to)? \d\.\d(?: \(in preparation\))?)+)")


def lessons_missing(text, there):
    """The numbers of lessons that `text` names as if they were there."""
    named = [number for found in LESSON_NAMED.findall(text)
             for number in re.findall(r"(\d\.\d)(?! \(in preparation\))", found)]
    return sorted(set(named) - set(there))


def test_a_lesson_that_is_named_is_there_or_in_preparation():
    there = [f"{int(path.parent.name[:2])}.{int(path.stem[:2])}" for path in LESSONS]
    texts = {notebooks.name_of(path): "\n".join(cell.source for cell in notebooks.read(path).cells) for path in LESSONS}
    others = [notebooks.ROOT / "README.md", *notebooks.ROOT.glob("shared/**/*.md"), *notebooks.ROOT.glob("*/*.py")]
    texts |= {str(path): path.read_text(encoding="utf-8") for path in others if path.parent.name != "tests"}
    found = {name: missing for name, text in texts.items() if (missing := lessons_missing(text, there))}
    assert "1.1" in there and not found, f"these lessons are not there, nor said to be in preparation: {found}"


def test_the_search_for_missing_lessons_finds_them():
    text = "Lesson 1.2; lessons 1.1, 1.2 and 9.1 (in preparation); lessons 1.1 to 9.2, lesson 9.3; 9.4 bits"
    assert lessons_missing(text, ["1.1", "1.2"]) == ["9.2", "9.3"]


# The rules tested, each on a made-up notebook that breaks it.

BADGE = "[![Open in Colab](%s)](https://colab.research.google.com/github/me/it/blob/main/01_toy/01_a.ipynb)"


def good_notebook():
    fold = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["solution", "hide-input"]}
    cells = [
        nbf.new_markdown_cell(f"# Toy\n\n{BADGE % hygiene.COLAB_BADGE}\n\n[next](02_b.ipynb#top), [a](https://b.org)"),
        nbf.new_code_cell("import sys", metadata={"tags": ["setup"]}),
        nbf.new_markdown_cell("<details><summary>Hint</summary>`<details>` and `[x](y)` are code</details>"),
        nbf.new_code_cell("print(1 / 2)", outputs=[stream("a/b /50 0.5 and/or\n")]),
        nbf.new_code_cell('#@title Solution 1.1 (double-click to open) { display-mode: "form" }\nx = 1', metadata=fold),
    ]
    return hygiene.clean(nbf.new_notebook(cells=cells))


def violations(notebook, tmp_path):
    folder = tmp_path / "01_toy"
    folder.mkdir(exist_ok=True)
    (folder / "02_b.ipynb").touch()
    notebooks.write(notebook, folder / "01_a.ipynb")
    return hygiene.violations(folder / "01_a.ipynb", tmp_path)


def test_a_good_notebook_breaks_no_rule(tmp_path):
    assert violations(good_notebook(), tmp_path) == []


def stream(text, name="stdout"):
    return nbf.new_output("stream", name=name, text=text)


def picture(kind):
    return nbf.new_output("display_data", data={kind: "{}"})


@pytest.mark.parametrize(("change", "expected"), [
    (lambda nb: nb.cells[3].update(execution_count=7), "counts are not 1..n"),
    (lambda nb: nb.cells[3].update(outputs=[stream("x", "stderr")]), "saved stderr"),
    (lambda nb: nb.cells[3].update(outputs=[nbf.new_output("error", ename="E", evalue="v")]), "a saved error: E: v"),
    (lambda nb: nb.cells[3].update(outputs=[picture("application/vnd.jupyter.widget-view+json")]), "a saved widget"),
    (lambda nb: nb.cells[3].update(outputs=[stream("UserWarning: x")]), "a saved warning"),
    (lambda nb: nb.cells[3].update(outputs=[stream("'/home/me/x'")]), "a path of one machine"),
    (lambda nb: nb.cells[3].update(outputs=[stream("C:\\Users\\me")]), "a path of one machine"),
    (lambda nb: nb.cells[3].update(outputs=[stream("<f at 0x7f001234>")]), "an object's address"),
    (lambda nb: nb.cells[3].update(outputs=[stream("x" * 301_000)]), "at most 300"),
    (lambda nb: nb.cells[3].update(source=" "), "an empty code cell"),
    (lambda nb: nb.cells[3].update(source="if scale() == 'quick':\n    pass"), "branches on the scale"),
    (lambda nb: nb.cells[3].metadata.update(execution={}), "metadata of one run"),
    (lambda nb: nb.cells[4].metadata.update(tags=["solution"]), "not folded"),
    (lambda nb: nb.cells[4].metadata.pop("cellView"), "not folded"),
    (lambda nb: nb.cells[4].update(source="x = 1"), "first line is not #@title"),
    (lambda nb: nb.cells[2].update(source="<details><summary>x</summary>"), "<details> is not closed"),
    (lambda nb: nb.cells[2].update(source="![x](https://example.org/a.png)"), "a picture from elsewhere"),
    (lambda nb: nb.cells[2].update(source="<img alt='x' src='https://example.org/a.png'>"), "a picture from elsewhere"),
    (lambda nb: nb.cells[2].update(source="![x](missing.svg)"), "a picture that does not exist"),
    (lambda nb: nb.cells[2].update(source="[x](../02_b/01_c.ipynb)"), "a link that leads nowhere"),
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
