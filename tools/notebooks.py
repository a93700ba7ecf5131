"""The lessons as files: where they are, how one is named, how they are read and written.

Only reading and writing need more than the standard library: tools look for lessons before the set-up too.
"""

import fnmatch
import re
import sys
from pathlib import Path

from shared.files import write_atomically

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema would build a grammar of web addresses: two seconds a start
ROOT = Path(__file__).resolve().parent.parent
SETUP_CELL = (ROOT / "tools" / "setup_cell.py").read_text(encoding="utf-8").strip()  # the same in every lesson
BADGE = "tools/colab_badge.svg"  # the picture in the first cell of every lesson


def lessons(root=ROOT):
    """Paths of all lesson notebooks, in reading order: `02_x`, `02b_y`, which was split off it, `03_z`."""
    return sorted(p for p in Path(root).glob("0?_*/*.ipynb") if re.match(r"\d\d[a-z]?_", p.name))


def name_of(path):
    """`02_attention/01_simple_self_attention`: how the tools call a lesson."""
    path = Path(path)
    return f"{path.parent.name}/{path.stem}"


def number_of(path):
    """`2.1`: chapter and lesson; `2.1b` for a file whose name begins with `01b_`."""
    path = Path(path)
    return f"{int(path.parent.name[:2])}.{path.stem.partition('_')[0].removeprefix('0')}"


def title_of(path):
    """`2.1 Attention without weights`: the first line of a lesson."""
    return title_in(read(path))


def title_in(notebook):
    """The same of a notebook that has been read."""
    return notebook.cells[0].source.partition("\n")[0].removeprefix("# ").strip()


def navigation(path, root=ROOT):
    """The line below a lesson's badge: links to the lesson before, to all of them, to the one after."""
    path, paths = Path(path).resolve(), [p.resolve() for p in lessons(root)]
    place = paths.index(path)

    def link(form, other):
        up = "" if other.parent == path.parent else f"../{other.parent.name}/"
        return f"[{form.format(title_of(other))}]({up}{other.name})"

    before = [link("← {}", paths[place - 1])] if place else []
    after = [link("{} →", paths[place + 1])] if place + 1 < len(paths) else []
    return " · ".join([*before, "[all lessons](../README.md#the-lessons)", *after])


def with_navigation(source, line):
    """A lesson's first cell with `line` below its badge, in place of the one that may stand there."""
    source = re.sub(r"\n+[^\n]*\[all lessons\]\(\.\./README\.md#[^\n]*", "", source)
    return re.sub(r"(\n\[!\[Open in Colab\][^\n]*)", lambda badge: f"{badge[1]}\n\n{line}", source, count=1)


def fits(path, wanted):
    """Whether a lesson is meant by `2` (its chapter), `2.1` (itself) or a pattern of its path such as `02_*`, `*mask`.

    `2.1` is not `2.1b`. A pattern has to fit the whole of `02_attention/01_simple_self_attention`, or the name of the
    folder.
    """
    number = number_of(path)
    if re.fullmatch(r"\d+(\.\d+[a-z]?)?", wanted):
        return wanted.lstrip("0") in (number, number.split(".")[0])
    pattern = re.sub(r"^\./|\.ipynb$|/$", "", wanted)
    return any(fnmatch.fnmatch(name, pattern) for name in (name_of(path), Path(path).parent.name))


def chosen(wanted, root=ROOT):
    """The lessons that fit one or more of the strings in `wanted`, in reading order; SystemExit if one fits none."""
    paths = lessons(root)
    for one in wanted:
        if not any(fits(path, one) for path in paths):
            there = "".join(f"\n  {number_of(path)}  {name_of(path)}" for path in paths) or " none"
            raise SystemExit(f"no lesson fits {one!r}; there are:{there}")
    return [path for path in paths if any(fits(path, one) for one in wanted)]


def count(n, what):
    """`1 lesson`, `2 lessons`."""
    return f"{n} {what}{'s' * (n != 1)}"


def read(path):
    import nbformat

    return nbformat.read(path, as_version=4)


def text_of(notebook):
    """What a notebook's file holds, with one trailing newline."""
    import nbformat

    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def write(notebook, path):
    """Write a notebook atomically, with Unix line ends, the same on every system."""
    with write_atomically(path) as part:
        part.write_text(text_of(notebook), encoding="utf-8", newline="\n")


def code_cells(notebook):
    """All code cells as (index in the notebook, cell)."""
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def merge_streams(outputs):
    """Outputs with neighbouring texts of one stream made one: how a kernel cuts its output is chance."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and output.name == last.get("name"):
            last.text += output.text
        else:
            merged.append(output)
    return merged


def without_colours(text):
    """`text` without the terminal's escape sequences."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
