"""Lessons bite: every listed mutation makes a cell of its lesson fail, every exercise tells right from wrong."""

import ast
import sys

import nbformat.v4
import pytest

from tests import bites
from tools import notebooks

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="needs os.fork, which Windows lacks and which is unsafe on macOS once system libraries have started threads",
)
LESSONS = notebooks.lessons()


@pytest.mark.parametrize("path", LESSONS, ids=[notebooks.name_of(path) for path in LESSONS])
def test_lesson(path):
    rows = bites.report_on(path, bites.bites_file(path))
    print(bites.table(rows))
    assert sum(row["kind"] == "mutation" for row in rows) >= 3, "at least three mutations a lesson"
    failed = [row for row in rows if not row["good"]]
    assert not failed, "\n" + bites.table(failed)


def test_there_are_lessons_and_no_orphans():
    assert LESSONS
    files = set(bites.bites_file("x/y.ipynb").parent.glob("*.py"))
    orphans = files - {bites.bites_file(path) for path in LESSONS}
    assert not orphans, f"no lesson has these names: {sorted(path.name for path in orphans)}"


# The engine tested, on a made-up lesson.

TORCH = [
    "import torch\n%matplotlib inline\nimport matplotlib.pyplot as plt",
    "layer = torch.nn.Linear(4, 4)\n(layer(torch.ones(2, 4)) ** 2).sum().backward()\nplt.plot([1, 2])\nplt.show()",
    "first = layer.weight.grad.clone()\nlayer.zero_grad()",
    "display(first)\n(layer(torch.ones(2, 4)) ** 2).sum().backward()\nassert torch.equal(layer.weight.grad, first)",
]
PLAIN = [
    "from dataclasses import dataclass",
    "@dataclass\nclass Pair:\n    a: int\n    b: int\n\ndef total(pair):\n    return pair.a + pair.b",
    "spare = 1\ndisplay(total(Pair(1, 2)))",
    "assert total(Pair(2, 3)) == 5",
    "def double(x):\n    raise NotImplementedError",
    "def check_double(f):\n    got = f(3)\n    assert got == 6, 'twice three is six'\n    print('ok')\n\n"
    "def attempt(check, answer):\n    try:\n        check(answer)\n    except NotImplementedError:\n"
    "        print('not attempted yet')\n    except Exception as error:\n"
    "        print('not yet:', error, '(is there a `return`?)')\n\nattempt(check_double, double)",
    "#@title Solution\ndef double_solution(x):\n    return 2 * x\n\ncheck_double(double_solution)",
]
MINUS = bites.Mutation("minus", find="pair.a + pair.b", replace="pair.a - pair.b")
WRONG = {"double": "def double(x):\n    return x + 2"}


def toy_rows(tmp_path, cells=PLAIN, mutations=(MINUS,), answers=WRONG, changes=None, left_out=()):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    for cell in notebook.cells:
        if cell.source.startswith("#@title Solution"):
            cell.metadata["tags"] = ["solution"]
    path, listed = tmp_path / "toy.ipynb", tmp_path / "toy_bites.py"
    notebooks.write(notebook, path)
    listed.write_text(f"from tests.bites import Mutation\nMUTATIONS = {list(mutations)!r}\n"
                      f"WRONG_ANSWERS = {answers!r}\nSMALLER = {changes or {}!r}\nLEFT_OUT = {list(left_out)!r}\n",
                      encoding="utf-8")
    return bites.report_on(path, listed)


def only(rows, kind):
    (found,) = [row for row in rows if row["kind"] == kind]
    return found


def test_engine_on_a_good_lesson(tmp_path):
    mutations = [MINUS, bites.Mutation("keep the gradients", find="layer.zero_grad()", replace="layer.train()")]
    rows = toy_rows(tmp_path, TORCH + PLAIN, mutations)
    kinds = ["mutation"] * 2 + ["wrong answer"] * 4 + ["untouched stub", "solution"]
    assert [row["kind"] for row in rows] == kinds
    assert all(row["good"] for row in rows), bites.table(rows)
    assert rows[0]["name"] == "keep the gradients" and "cell 3: AssertionError" in rows[0]["says"]
    assert rows[1]["name"] == "minus" and "cell 7: AssertionError" in rows[1]["says"]


def test_engine_tells_mutations_that_bite_from_those_that_do_not(tmp_path):
    expected = {
        bites.Mutation("harmless", "spare = 1", "spare = 2"): "nothing raised",
        bites.Mutation("misspelt", "pair.a + pair.b", "pear.a + pair.b"): "broken program (cell 2: NameError",
        bites.Mutation("no code", "pair.a + pair.b", "pair.a +"): "broken program (cell 1: SyntaxError",
        bites.Mutation("absent", "pair.a * pair.b", ""): "should be found 1 time(s): nowhere",
        bites.Mutation("ambiguous", "(Pair(", "(abs("): "should be found 1 time(s): 1 in cell 2, 1 in cell 3",
        bites.Mutation("unchanged", "spare = 1", "spare = 1"): "changes nothing",
        bites.Mutation("endless", "spare = 1", "while True: pass", seconds=1): "timeout",
        bites.Mutation("crash", "spare = 1", "import os; os._exit(3)"): "died",
        bites.Mutation("counted", "(Pair(", "(abs(", count=2): "raised (cell 2: TypeError",
        bites.Mutation("confined", "(Pair(", "(abs(", cell_contains="assert"): "raised (cell 3: TypeError",
    }
    rows = {row["name"]: row for row in toy_rows(tmp_path, mutations=expected) if row["kind"] == "mutation"}
    assert len(rows) == len(expected)
    for mutation, says in expected.items():
        assert says in rows[mutation.name]["says"], mutation.name
        assert rows[mutation.name]["good"] == says.startswith("raised"), mutation.name


@pytest.mark.parametrize(("answer", "good", "says"), [
    ("def double(x):\n    return 5", True, "refused (cell 5: not yet: twice three is six"),
    ("def double(x):\n    return [][x]", True, "refused (cell 5: not yet: list index out of range"),
    ("def double(x):\n    return 2 * x", False, "accepted"),
    ("def double(x):\n    raise SystemExit('no')", False, "raised (cell 5: SystemExit: no)"),
], ids=["caught", "raises", "right", "not caught"])
def test_engine_judges_wrong_answers(tmp_path, answer, good, says):
    row = next(row for row in toy_rows(tmp_path, answers={"double": answer}) if row["name"] == "double")
    assert row["good"] == good and says in row["says"]


@pytest.mark.parametrize(("old", "new", "failing"), [
    ("except Exception", "except AssertionError", {"double raises TypeError"}),
    ("(is there a `return`?)", "", {"double returns nothing"}),
    ("got == 6", "got == 6 or got == 'a text'", {"double returns a text"}),
])
def test_engine_tries_careless_answers(tmp_path, old, new, failing):
    rows = toy_rows(tmp_path, [source.replace(old, new) for source in PLAIN])
    assert {row["name"] for row in rows if not row["good"]} == failing, bites.table(rows)


def test_every_lesson_attempts_in_the_same_way():
    cells = [source for path in LESSONS for source in bites.code_of(notebooks.read(path)).values()]
    found = [ast.unparse(node) for source in cells if "def attempt(" in source
             for node in ast.parse(source).body if getattr(node, "name", "") == "attempt"]
    assert len(found) == len(LESSONS) and len(set(found)) == 1, "\n\n".join(set(found))


def test_stub_and_check_may_share_a_cell(tmp_path):
    rows = toy_rows(tmp_path, [*PLAIN[:4], PLAIN[4] + "\n\n" + PLAIN[5], PLAIN[6]])
    assert len(rows) == 7 and all(row["good"] for row in rows), bites.table(rows)


def test_engine_wants_one_wrong_answer_for_each_stub(tmp_path):
    rows = [row for row in toy_rows(tmp_path, answers={"triple": "x = 1"}) if row["kind"] == "wrong answer"]
    assert {row["name"] for row in rows if not row["good"]} == {"double", "triple"}


@pytest.mark.parametrize(("old", "new", "kind"), [
    ("print('not attempted yet')", "pass", "untouched stub"),
    ("attempt(check_double, double)", "check_double(lambda x: 2 * x)", "solution"),
    ("check_double(double_solution)", "print('ok')", "solution"),
    ("double_solution", "another", "solution"),
])
def test_engine_reports_a_faulty_exercise(tmp_path, old, new, kind):
    cells = [source.replace(old, new) for source in PLAIN]
    assert cells != PLAIN
    assert not only(toy_rows(tmp_path, cells), kind)["good"]


def test_engine_names_the_cell_that_fails_untouched(tmp_path):
    with pytest.raises(bites.BitesError, match="cell 3 fails untouched(.|\n)*AssertionError"):
        toy_rows(tmp_path, [source.replace("== 5", "== 4") for source in PLAIN])
    with pytest.raises(bites.BitesError, match="does without this magic"):
        toy_rows(tmp_path, ["!ls"])


def test_a_lesson_that_takes_its_process_down_is_named_and_the_next_one_runs(tmp_path):
    crash = "import os, sys\nos.write(2, b'last words')\nos._exit(3)"
    with pytest.raises(bites.BitesError, match="died(.|\n)*last words"):
        toy_rows(tmp_path, [crash])
    assert all(row["good"] for row in toy_rows(tmp_path))
    server, _ = bites.server()
    server.kill()
    server.wait()
    with pytest.raises(bites.BitesError, match="server died"):
        toy_rows(tmp_path)
    assert all(row["good"] for row in toy_rows(tmp_path))


def test_a_lesson_is_made_smaller(tmp_path):
    for new, says in (("total(Pair(2, 2)) == 4", "raised"), ("total(Pair(0, 0)) == 0", "nothing raised")):
        rows = toy_rows(tmp_path, changes={"total(Pair(2, 3)) == 5": new})
        assert says in only(rows, "mutation")["says"]
    with pytest.raises(bites.BitesError, match="'SMALLER': 'Pear' should be found 1 time"):
        toy_rows(tmp_path, changes={"Pear": "Pair"})


def test_cells_are_left_out(tmp_path):
    cells = [PLAIN[0], "raise SystemExit('never run')", *PLAIN[1:]]
    assert all(row["good"] for row in toy_rows(tmp_path, cells, left_out=["SystemExit"]))
    (row,) = (row for row in toy_rows(tmp_path, left_out=["total(Pair(2, 3))"]) if row["name"] == "minus")
    assert not row["good"] and row["says"] == "nothing raised"
    for text, found in (("no such text", "in none"), ("(Pair(", r"\[2, 3\]")):
        with pytest.raises(bites.BitesError, match=f"should be in one cell: {found}"):
            toy_rows(tmp_path, left_out=[text])


def test_what_lies_between_may_be_skipped(tmp_path):
    cells = [*PLAIN[:2], "runs = 'a long training'\npair = Pair(2, 3)", "import os\nos.environ['TRAINED'] += runs",
             "assert total(pair) == 5 and pair.sum() == 5, os.environ['TRAINED']"]  # fmt: skip
    cells[1] += "\n\nimport os\nos.environ['TRAINED'] = ''\n\n@dataclass\nclass Pair(Pair):\n    def sum(self):\n" \
                "        return self.a + self.b"
    skipped = [bites.Mutation("function", "pair.a + pair.b", "pair.a - pair.b", skip_to="assert total"),
               bites.Mutation("class", "self.a + self.b", "self.a - self.b", skip_to="assert total"),
               bites.Mutation("nowhere", "self.a + self.b", "self.a", skip_to="assert nothing")]  # fmt: skip
    rows = toy_rows(tmp_path, cells, skipped, {})
    assert [row["good"] for row in sorted(rows, key=lambda row: row["name"])] == [True, True, False]
    assert all(row["says"] == "raised (cell 4: AssertionError)" for row in rows if row["good"]), bites.table(rows)
    assert any("'assert nothing' should be in one cell: in none" in row["says"] for row in rows)


def test_a_lesson_without_a_list_is_an_error():
    with pytest.raises(bites.BitesError, match=r"there is no 02_attention__99_missing\.py"):
        bites.load_bites(bites.bites_file("02_attention/99_missing.ipynb"))
