"""The lessons as files: where they are, how they are read and written."""

import re
import sys
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema would build a grammar of web addresses: two seconds a start
import nbformat  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SETUP_CELL = (ROOT / "tools" / "setup_cell.py").read_text(encoding="utf-8").strip()  # the same in every lesson


def lessons(root=ROOT):
    """Paths of all lesson notebooks, in reading order."""
    return sorted(Path(root).glob("0?_*/*.ipynb"))


def name_of(path):
    """`02_attention/01_simple_self_attention`: how the tools call a lesson."""
    path = Path(path)
    return f"{path.parent.name}/{path.stem}"


def read(path):
    return nbformat.read(path, as_version=4)


def write(notebook, path):
    """Write a notebook with one trailing newline and Unix line ends, the same on every system."""
    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    Path(path).write_text(text, encoding="utf-8", newline="\n")


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
