"""Lessons bite: break a key line of a lesson, and one of its own cells must fail.

For the lesson `02_attention/03_causal_self_attention` the file `tests/bites/02_attention__03_causal_self_attention.py`
names what is broken:

    from tests.bites import Mutation

    MUTATIONS = [
        Mutation("drop the mask", find="scores.masked_fill(mask, -torch.inf)", replace="scores"),
        Mutation("drop the scale", find=" / d**0.5", replace="", cell_contains="class CausalAttention"),
    ]
    WRONG_ANSWERS = {"causal_mask": '''
    def causal_mask(T):
        return torch.tril(torch.ones(T, T))  # lets through what it should stop
    '''}

A mutation replaces `find` in the one code cell that has it (once; or `count` times, in however many cells), looking
only at cells that contain `cell_contains`. From that cell on the lesson is run again: some cell must raise. NameError,
SyntaxError and ImportError do not count, for they show only that the mutated text is no program. Where a function is
broken that matters only after a long training, `skip_to` names the next cell that shall be run, by a text that it has:
what lies between the changed cell and that one is taken from the lesson as it is, and objects whose class was defined
anew get the new one.

A wrong answer is put in place of an exercise's stub (a function whose body raises NotImplementedError): of the cells
from there to the solution one must print "not yet: " and a reason, and none may raise, for no learner is helped by a
traceback. The same is asked of answers that return nothing, raise a TypeError or return a text. With the untouched stub
those cells must print "not attempted yet". The solution (`NAME_solution`) goes through the same check in its own cell.

A lesson that trains for long may say how it is made smaller for this, since nbval has run it as it is:

    SMALLER = {"examples=3600": "examples=800"}

and which cells, each named by some text that no other has, are left out, since no later one needs what they measure
or draw:

    LEFT_OUT = ["recipes = {"]

How: a lesson runs once, in one process, as plain Python; at each cell that a mutation touches the process forks, and
the child goes on with the mutated cell while the parent waits. That process is itself forked, from a server that has
imported PyTorch once for all lessons, which saves some seconds each. `python -m tests.bites NOTEBOOK ...` prints the
table.
"""

import ast
import contextlib
import functools
import importlib.util
import io
import json
import linecache
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

from tools import notebooks

ROOT = notebooks.ROOT
NOT_ATTEMPTED = "not attempted yet"
NOT_YET = re.compile(r"^not yet: .*\S.*$", re.MULTILINE)
ANY_EXERCISE = {  # wrong answers to every exercise
    "returns nothing": "def {}(*inputs):\n    pass",
    "raises TypeError": "def {}(*inputs):\n    raise TypeError('these cannot be added')",
    "returns a text": "def {}(*inputs):\n    return 'a text'",
}
BROKEN_PROGRAM = (NameError, SyntaxError, ImportError)
PRELOADED = ("torch", "torch._dynamo", "matplotlib.pyplot")  # the second is what an optimizer imports when first made


@dataclass(frozen=True)
class Mutation:
    """One way to break a lesson: `find` becomes `replace`, `count` times in all, in cells with `cell_contains`."""

    name: str
    find: str
    replace: str
    cell_contains: str = ""
    count: int = 1
    skip_to: str = ""
    seconds: float = 120  # from the mutated cell to the one that raises


class BitesError(Exception):
    """The list of mutations does not fit the lesson."""


def bites_file(path, folder=ROOT / "tests" / "bites"):
    """The file with a lesson's mutations: `tests/bites/<chapter folder>__<notebook stem>.py`."""
    return Path(folder) / (notebooks.name_of(path).replace("/", "__") + ".py")


def load_bites(path):
    """(MUTATIONS, WRONG_ANSWERS, SMALLER, LEFT_OUT) of a bites file; the last two are empty where there are none."""
    if not Path(path).is_file():
        raise BitesError(f"there is no {Path(path).name} in tests/bites")
    lists = runpy.run_path(str(path))  # compiled anew: an import may take an older text for this one
    answers = {name: textwrap.dedent(answer).strip() for name, answer in lists["WRONG_ANSWERS"].items()}
    return list(lists["MUTATIONS"]), answers, lists.get("SMALLER", {}), lists.get("LEFT_OUT", [])


def plain_python(source):
    """A cell as plain Python: `%matplotlib`, `%config` and `%%time` lines dropped; other magics raise BitesError."""
    kept = []
    for line in source.split("\n"):
        if re.match(r"\s*(%matplotlib|%config|%%time\s*$)", line):
            line = ""
        elif re.match(r"[%!]", line):
            raise BitesError(f"a lesson does without this magic: {line}")
        kept.append(line)
    return "\n".join(kept)


def code_of(notebook):
    """The code cells as {number in the notebook: source}; what is tagged `nbval-skip` is left out."""
    return {i: plain_python(cell.source) for i, cell in notebooks.code_cells(notebook)
            if cell.source.strip() and "nbval-skip" not in notebooks.tags(cell)}


def mutated_cells(mutation, cells):
    """The cells that a mutation changes, changed: {number: source}."""
    found = {i: source.count(mutation.find) for i, source in cells.items() if mutation.cell_contains in source}
    found = {i: n for i, n in found.items() if n}
    if sum(found.values()) != mutation.count:
        where = ", ".join(f"{n} in cell {i}" for i, n in found.items()) or "nowhere"
        raise BitesError(f"{mutation.name!r}: {mutation.find!r} should be found {mutation.count} time(s): {where}")
    if mutation.find == mutation.replace:
        raise BitesError(f"{mutation.name!r} changes nothing")
    return {i: cells[i].replace(mutation.find, mutation.replace) for i in found}


def only_cell_with(text, cells, name):
    """The number of the one cell that contains `text`; BitesError if it is in none or in several."""
    found = [i for i, source in cells.items() if text in source]
    if len(found) != 1:
        raise BitesError(f"{name}: {text!r} should be in one cell: {found or 'in none'}")
    return found[0]


def smaller(cells, changes):
    """The cells with each of `changes` {old: new} made; raises BitesError where an old text is not there once."""
    for old, new in changes.items():
        cells = cells | mutated_cells(Mutation("SMALLER", old, new), cells)
    return cells


def without(cells, left_out):
    """The cells but for those that contain one of these texts; raises BitesError where a text is not in one cell."""
    for text in left_out:
        dropped = only_cell_with(text, cells, "LEFT_OUT")
        cells = {i: source for i, source in cells.items() if i != dropped}
    return cells


def stubs_in(cells):
    """The exercises: {name: number of its cell} for each function or class with `raise NotImplementedError`."""
    found = {}
    for i, source in cells.items():
        if "NotImplementedError" not in source:
            continue
        for node in ast.parse(source).body:
            raises = any(isinstance(n, ast.Raise) and "NotImplementedError" in ast.unparse(n) for n in ast.walk(node))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and raises:
                found[node.name] = i
    return found


def with_answer(source, name, answer):
    """The stub's cell with the definition `name` replaced by `answer`."""
    node = next(n for n in ast.parse(source).body if getattr(n, "name", None) == name)
    lines = source.split("\n")
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    return "\n".join([*lines[:start], answer, *lines[node.end_lineno:]])


class Lesson:
    """One run of a lesson's code cells in this process, in a module of their own, as in a kernel."""

    def __init__(self, cells):
        self.cells = cells
        self.printed = {}  # cell number -> what it wrote
        self.module = types.ModuleType("__main__")
        self.module.display = lambda *values, **options: print(*values)
        sys.modules["__main__"] = self.module  # dataclasses and pickle look their module up

    def run(self, i, source=None):
        """Run one cell (its own source if none is given); returns what it printed."""
        source = self.cells[i] if source is None else source
        name = f"<cell {i}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(source, name, "exec"), self.module.__dict__)
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close("all")
        self.printed[i] = out.getvalue()
        return self.printed[i]


def in_a_fork(seconds, function, *arguments):
    """What `function(*arguments)`, a dict, returns in a forked child; or {"outcome": "timeout" | "died"}."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            with os.fdopen(write_end, "w", encoding="utf-8") as pipe:
                json.dump(function(*arguments), pipe)
        finally:
            os._exit(0)
    os.close(write_end)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(read_end)
            return {"outcome": "timeout"}
        time.sleep(0.01)
    with os.fdopen(read_end, encoding="utf-8") as pipe:
        text = pipe.read()
    return json.loads(text) if text else {"outcome": "died"}


def reclass(namespace):
    """Give the objects of a lesson whose class has been defined anew, under the same name, the new class."""
    for value in list(namespace.values()):
        new = namespace.get(type(value).__name__)
        if isinstance(new, type) and new is not type(value) and type(value).__module__ == new.__module__ == "__main__":
            value.__class__ = new


def first_to_raise(lesson, numbers, changed, again=()):
    """Run the cells `numbers`, some of them changed, until one raises: {"outcome", "cell", "error", "message"}.

    The cells `again` have been run before; what was made since then follows their classes.
    """
    for i in numbers:
        try:
            lesson.run(i, changed.get(i))
            if i in again:
                reclass(lesson.module.__dict__)
        except BaseException as error:
            outcome = "broken program" if isinstance(error, BROKEN_PROGRAM) else "raised"
            return {"outcome": outcome, "cell": i, "error": type(error).__name__, "message": str(error)[:200]}
    return {"outcome": "nothing raised"}


def refuses(lesson, name, numbers, answer):
    """Put a wrong answer in the stub's place and run the cells from there to the solution: one must say why not."""
    result = first_to_raise(lesson, numbers, {numbers[0]: with_answer(lesson.cells[numbers[0]], name, answer)})
    if result["outcome"] == "nothing raised":
        said = [(i, match[0]) for i in numbers if (match := NOT_YET.search(lesson.printed[i]))]
        return {"outcome": "refused", "cell": said[0][0], "message": said[0][1]} if said else {"outcome": "accepted"}
    return result


def calls(sources):
    """What is called in these cells, as texts of Python: `check_mask(mask_solution)`."""
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    return [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]


def is_checked(name, before, solution):
    """Whether an exercise's check is given the reader's answer, by `attempt`, and our solution, in its own cell.

    That the solution passes, the lesson's own run shows: its cell would raise. Here that cell is not run.
    """
    attempted = f"attempt(check_{name}, {name})" in calls(before)
    proven = any(call.startswith(f"check_{name}({name}_solution") for call in calls(solution))
    if attempted and proven:
        return {"outcome": "checked"}
    missing = f"check_{name}({name}_solution)" if attempted else f"attempt(check_{name}, {name})"
    return {"outcome": "unchecked", "message": f"no cell calls {missing}"}


def says_not_attempted(lesson, i):
    return NOT_ATTEMPTED in lesson.printed[i].lower()


def row(kind, name, good, result):
    place = f"cell {result['cell']}: " if "cell" in result else ""
    said = ": ".join(" ".join(result[key].split()) for key in ("error", "message") if result.get(key))
    return {"kind": kind, "name": name, "good": good, "says": f"{result['outcome']} ({place}{said})" if said
            else result["outcome"]}


def run_lesson(path, mutations, answers, changes, left_out):
    """All mutations and exercises of one notebook, in this process: a list of rows (kind, name, good, says)."""
    notebook = notebooks.read(path)
    cells = smaller(code_of(notebook), changes)
    cells = without(cells, left_out)
    rows, touched = [], {}
    for mutation in mutations:
        try:
            changed = mutated_cells(mutation, cells)
            start = only_cell_with(mutation.skip_to, cells, mutation.name) if mutation.skip_to else min(changed)
            touched.setdefault(start, []).append((mutation, changed))
        except BitesError as error:
            rows.append(row("mutation", mutation.name, False, {"outcome": str(error)}))

    stubs = stubs_in(cells)
    solutions = {i: cell.source for i, cell in notebooks.code_cells(notebook) if "solution" in notebooks.tags(cell)}
    checks = {}  # exercise -> numbers of the cells from its stub up to the solution
    for name, at in stubs.items():
        end = min((i for i in solutions if i > at), default=max(cells) + 1)
        checks[name] = [i for i in cells if at <= i < end]
        if name not in answers:
            rows.append(row("wrong answer", name, False, {"outcome": "no wrong answer is listed"}))
    for name in answers.keys() - stubs.keys():
        rows.append(row("wrong answer", name, False, {"outcome": "the lesson has no such stub"}))

    lesson = Lesson(cells)
    idle = {at for at, source in solutions.items()  # no later cell needs what stands in such a cell
            if not any(f"{name}_solution" in cells[j] for name in stubs if f"{name}_solution" in source
                       for j in cells if j > at)}  # fmt: skip
    for i in cells:
        rest = [j for j in cells if j >= i]
        for mutation, changed in touched.get(i, []):
            again = [j for j in changed if j < i]  # with `skip_to`
            result = in_a_fork(mutation.seconds, first_to_raise, lesson, again + rest, changed, again)
            rows.append(row("mutation", mutation.name, result["outcome"] == "raised", result))
        for name in (name for name, at in stubs.items() if at == i):
            wrong = {title: answer for title, answer in answers.items() if title == name}
            wrong |= {f"{name} {what}": answer.format(name) for what, answer in ANY_EXERCISE.items()}
            for title, answer in wrong.items():
                result = in_a_fork(60, refuses, lesson, name, checks[name], answer)
                good = result["outcome"] == "refused" and ("`return`?" in result["message"] or "nothing" not in title)
                rows.append(row("wrong answer", title, good, result))
        try:
            if i not in idle:
                lesson.run(i)
        except BaseException:
            raise BitesError(f"cell {i} fails untouched:\n{cells[i]}\n\n{traceback.format_exc(limit=-4)}") from None

    for name, numbers in checks.items():
        said = any(says_not_attempted(lesson, i) for i in numbers)
        rows.append(row("untouched stub", name, said, {"outcome": f"says {NOT_ATTEMPTED!r}" if said else
                                                       f"no cell up to the solution says {NOT_ATTEMPTED!r}"}))
        its_own = [source for i, source in solutions.items() if i > numbers[-1]][:1]
        result = is_checked(name, [cells[i] for i in numbers], its_own)
        rows.append(row("solution", name, result["outcome"] == "checked", result))
    return rows


def work(notebook, bites):
    """What a child of the server does, in the notebook's folder: {"rows": ...} or {"error": what went wrong}."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.insert(0, "")
    os.chdir(Path(notebook).parent)
    try:
        return {"rows": run_lesson(notebook, *load_bites(bites))}
    except BitesError as error:
        return {"error": str(error)[-8_000:]}
    except BaseException:
        return {"error": f"the engine failed:\n{traceback.format_exc()[-8_000:]}"}


def serve():
    """The body of the server: a child for each line of standard input (seconds, notebook, bites), a line for each."""
    from tqdm import tqdm

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a lesson starts may write between the answers
    for name in PRELOADED:
        importlib.import_module(name)
    tqdm.monitor_interval = 0  # forks demand one thread
    warnings.filterwarnings("ignore", message=".*non-interactive.*")
    for line in sys.stdin:
        seconds, notebook, bites = json.loads(line)
        print(json.dumps(in_a_fork(seconds, work, notebook, bites)), file=answers, flush=True)


@functools.cache
def server():
    """The server of this process, which ends with it, and the file with what it and its children say."""
    environment = os.environ | {"LLM_SCALE": "quick", "LLM_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "",
                                "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment.pop("LLM_TEXT", None)
    said = tempfile.TemporaryFile()
    command = [sys.executable, "-c", "from tests import bites; bites.serve()"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=said, text=True, encoding="utf-8"), said


def report_on(notebook, bites, seconds=900):
    """Run a lesson's bites in a process of its own: rows; BitesError if the lesson or its list cannot be run."""
    process, said = server()
    before = os.fstat(said.fileno()).st_size
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps([seconds, *(str(Path(path).resolve()) for path in (notebook, bites))]) + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    result = json.loads(answer) if answer else {"outcome": "server died"}
    if "outcome" in result:
        if not answer:
            server.cache_clear()
        text = os.pread(said.fileno(), 10**6, before).decode(errors="replace")
        raise BitesError(f"the lesson's process: {result['outcome']}\n{text[-4000:]}")
    if "error" in result:
        raise BitesError(result["error"])
    return result["rows"]


def table(rows):
    return "\n".join(f"{'ok  ' if r['good'] else 'FAIL'} {r['kind']}: {r['name']}: {r['says']}" for r in rows)


def main():
    failed = False
    for path in [Path(a) for a in sys.argv[1:]] or notebooks.lessons():
        start = time.monotonic()
        try:
            rows = report_on(path, bites_file(path.resolve()))
            failed |= not all(r["good"] for r in rows)
            said = table(rows)
        except BitesError as error:
            failed, said = True, f"FAIL {error}"
        print(f"{notebooks.name_of(path.resolve())} ({time.monotonic() - start:.1f} s)\n{textwrap.indent(said, '  ')}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
