"""Finished code in two places, kept equal: the lesson that builds it, and `shared`, which carries it forward.

A code cell whose first line is `# -> shared/NAME.py` holds finished definitions. tests/test_carry_forward.py demands
that each of them has the same syntax tree as its namesake in that module; docstrings, annotations, comments and imports
aside.

`python -m tools.carry [NOTEBOOK ...]` copies the module's present definitions into the marked cells, with docstrings
cut to their first line, tools/setup_cell.py into the cell tagged `setup`, and links to the lessons before and after
into the first cell. It never goes the other way. Run `python -m tools.save` on the notebooks it names afterwards.
"""

import argparse
import ast
import difflib
import re
from pathlib import Path

from shared.files import command_line
from tools import hygiene, notebooks

MARK = re.compile(r"# -> (shared/\w+\.py)")
LOOKS_LIKE_A_MARK = re.compile(r"\s*#\s*(-+>|→|=>).*|\s*#.*->\s*shared\b.*")


class CarryError(ValueError):
    """A marked cell that cannot be read as one."""


def marked_module(source):
    """`shared/NAME.py` if the first line of a cell carries the mark, else None. A mark that is misspelt raises."""
    first, *others = (line.rstrip() for line in source.split("\n"))
    if any(MARK.fullmatch(line) for line in others):
        raise CarryError("the mark '# -> shared/NAME.py' must be the first line of its cell, once")
    if match := MARK.fullmatch(first):
        return match.group(1)
    if LOOKS_LIKE_A_MARK.fullmatch(first):
        raise CarryError(f"this first line looks like a mark and is none: {first!r}; the form is '# -> shared/NAME.py'")
    return None


def marked_cells(notebook):
    """All marked cells of a notebook as (cell index, module path, cell)."""
    found = ((i, marked_module(cell.source), cell) for i, cell in notebooks.code_cells(notebook))
    return [(i, module, cell) for i, module, cell in found if module]


def definitions(source):
    """The top-level definitions of some code as {name: node}: functions, classes, assigned names; no imports."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign) or (isinstance(node, ast.AnnAssign) and node.value):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                found.update({name.id: node for name in names if isinstance(name, ast.Name)})
    return found


class Bare(ast.NodeTransformer):
    """Takes docstrings and annotations away; a field of a class keeps its name and its default."""

    in_class = False

    def visit_scope(self, node, in_class):
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        outer, self.in_class = self.in_class, in_class
        self.generic_visit(node)
        self.in_class = outer
        node.body = node.body or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.visit_scope(node, in_class=False)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        return self.visit_scope(node, in_class=True)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if self.in_class:
            node.annotation = ast.Name("_", ast.Load())
            return node
        return ast.Assign([node.target], node.value, lineno=0) if node.value else None


def bare(node):
    """A copy of a definition's tree as it is compared."""
    return Bare().visit(ast.parse(ast.unparse(node))).body[0]


def drift(cell_source, module_source, cell_name="cell", module_name="module"):
    """What differs between a marked cell and its module: "" if nothing does, else a readable unified diff."""
    here, there = definitions(cell_source), definitions(module_source)
    if not here:
        return f"{cell_name}: a marked cell without a definition\n"
    found = []
    for name, node in here.items():
        if name not in there:
            found.append(f"{cell_name}: {name} is not defined in {module_name}\n")
            continue
        ours, theirs = bare(node), bare(there[name])
        if ast.dump(ours) != ast.dump(theirs):
            lines = [ast.unparse(tree).splitlines(keepends=True) for tree in (ours, theirs)]
            lines = [[*block[:-1], block[-1] + "\n"] for block in lines]
            found.append("".join(difflib.unified_diff(*lines, f"{cell_name}: {name}", f"{module_name}: {name}")))
    return "".join(found)


def public_names(source):
    """Top-level names of a module that a reader may import: those without a leading underscore."""
    return [name for name in definitions(source) if not name.startswith("_")]


def segment(lines, node):
    """First and last line (from 0, last exclusive) of a definition, decorators included."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return first - 1, node.end_lineno


def with_short_docstrings(source):
    """`source` with every docstring of several lines cut to its first line."""
    lines = source.split("\n")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    scopes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds) and ast.get_docstring(n) is not None]
    for scope in sorted(scopes, key=lambda n: n.body[0].lineno, reverse=True):
        start, end = scope.body[0].lineno - 1, scope.body[0].end_lineno
        if end - start > 1:
            opening = re.match(r'\s*\w*("""|\'\'\'|"|\')', lines[start])
            words = lines[start][opening.end():].rstrip("\\").strip() or lines[start + 1].strip()
            lines[start:end] = [opening.group() + words + opening.group(1)]
    return "\n".join(lines)


def refreshed(cell_source, module_source, module_name="module"):
    """A marked cell's source, each definition replaced by the module's. Raises CarryError for an unknown name."""
    there, module_lines = definitions(module_source), module_source.split("\n")
    cell_lines = cell_source.split("\n")
    unique = {id(node): (name, node) for name, node in definitions(cell_source).items()}
    for name, node in sorted(unique.values(), key=lambda pair: pair[1].lineno, reverse=True):
        if name not in there:
            raise CarryError(f"{name} is not defined in {module_name}")
        start, end = segment(module_lines, there[name])
        new = with_short_docstrings("\n".join(module_lines[start:end])).split("\n")
        start, end = segment(cell_lines, node)
        cell_lines[start:end] = new
    return "\n".join(cell_lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tools.carry", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="NOTEBOOK", type=Path, help="default: all lessons")
    paths = parser.parse_args(arguments).paths or notebooks.lessons()
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"there is no {', '.join(missing)}")
    failed = False
    for path in paths:
        notebook, changed = notebooks.read(path), []
        for i, cell in notebooks.code_cells(notebook):
            folded = cell.metadata | hygiene.SETUP_METADATA
            if "setup" in notebooks.tags(cell) and (cell.source, cell.metadata) != (notebooks.SETUP_CELL, folded):
                cell.source, cell.metadata = notebooks.SETUP_CELL, folded
                changed.append(f"cell {i} (the setup cell)")
        if path.resolve() in [lesson.resolve() for lesson in notebooks.lessons()]:
            first = notebooks.with_navigation(notebook.cells[0].source, notebooks.navigation(path))
            if first != notebook.cells[0].source:
                notebook.cells[0].source = first
                changed.append("cell 0 (the links to other lessons)")
        try:
            for i, module, cell in marked_cells(notebook):
                module_source = (notebooks.ROOT / module).read_text(encoding="utf-8")
                if drift(cell.source, module_source):
                    cell.source = refreshed(cell.source, module_source, module)
                    changed.append(f"cell {i} (from {module})")
        except (CarryError, OSError, SyntaxError) as error:
            print(f"{notebooks.name_of(path)}: {error}")
            failed = True
            continue
        if changed:
            notebooks.write(notebook, path)
        print(f"{notebooks.name_of(path)}: {', '.join(changed) or 'nothing to do'}")
    return int(failed)


if __name__ == "__main__":
    command_line(main)
