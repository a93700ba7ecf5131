"""What a lesson finishes and what `shared` carries forward is the same code, and all of `shared` is taught."""

import ast
from collections import defaultdict

import nbformat.v4 as nbf
import pytest

from tools import carry, notebooks

ROOT = notebooks.ROOT
# Not those of the wing `shared/data`: downloads, checksums, mirrors and file formats are operation, not lesson.
MODULES = sorted(path for path in (ROOT / "shared").glob("*.py") if path.name != "__init__.py")

# Public names that no lesson builds, each with its reason; "module:*" stands for a whole module.
NOT_TAUGHT = {
    "shared/runtime.py:*": "device, number format, seed, scale: operation, not lesson",
    "shared/drawing.py:*": "boxes and arrows: how the lessons draw, not what",
    "shared/files.py:*": "checksums, atomic writing, the errors of damaged files: operation, not lesson",
    "shared/tokenizer_files.py:*": "the files in which other programs keep an encoding: operation",
    "shared/tokenizer.py:apply_merges": "lesson 1.1's encode_piece for pieces of any length; it asserts the same ids",
    "shared/tokenizer.py:valid_unicode": "mends what broken decoders leave in a text: operation",
    "shared/tokenizer.py:load_tokenizer": "GPT-2's files, or the bundled ones in their place; lesson 1.1 uses it",
    "shared/tokenizer.py:from_tiktoken": "the way back to lesson 1.1's tokenizer, for checkpoints; lesson 1.1 uses it",
    "shared/tokenizer.py:with_end_of_text": "words the errors of tokenizers that no lesson can use",
    "shared/gguf.py:NORMAL": "a number that llama.cpp gives to ordinary tokens: its own table",
    "shared/gguf.py:CONTROL": "a number that llama.cpp gives to special tokens: its own table",
    "shared/gguf.py:write_gguf": "another program's file format, written with that program's own package",
    "shared/gguf.py:gpt2_settings": "the keys of another program's file",
    "shared/gguf.py:gpt2_tensors": "the names of another program's file",
    "shared/gguf.py:llama_settings": "the keys of another program's file",
    "shared/llama_files.py:NAMES": "a table of names; lesson 3.7 builds one for GPT-2",
    "shared/llama_files.py:CLASSIFIER": "a name in other programs",
    "shared/llama_files.py:BLOCK_NAMES": "a table of names; lesson 3.7 builds one for GPT-2",
    "shared/llama_files.py:GGUF_NAMES": "a table of names; lesson 3.7 builds one for GPT-2",
    "shared/llama_files.py:published_name": "looks into that table; lesson 3.7 builds GPT-2's",
    "shared/llama_files.py:from_published": "renames tensors; lesson 3.7 builds GPT-2's",
    "shared/llama_files.py:to_published": "renames tensors; lesson 3.7 builds GPT-2's",
    "shared/llama_files.py:config_from_json": "the keys of config.json and the errors of damaged ones",
    "shared/llama_files.py:config_to_json": "the keys of config.json, for other programs",
    "shared/llama_files.py:config_from_gguf": "the keys of a GGUF file; lesson 3.8 prints and uses them",
    "shared/llama_files.py:from_gguf": "renames tensors and calls unpermuted, which lesson 3.8 builds",
    "shared/llama_files.py:to_gguf": "the way back of from_gguf, for other programs",
    "shared/smollm_tokenizer.py:*": "the encoding of lesson 1.1 with another split, by tiktoken; lesson 3.8 uses it",
    "shared/gpt.py:CLASSIFIER": "a name in other programs",
    "shared/gpt.py:config_from_json": "the keys of config.json and the errors of damaged ones",
    "shared/gpt.py:config_to_json": "the keys of config.json, for other programs",
    "shared/checkpoints.py:COURSE_BASE": "where the course base lies",
    "shared/checkpoints.py:TOKENIZER_FILES": "names of files that other programs write: operation",
    "shared/weights.py:ARCHITECTURES": "a table: which module knows the names in a checkpoint",
    "shared/weights.py:architecture_of": "looks into that table",
    "shared/weights.py:empty_model": "the device meta, without a second of imports; lesson 3.7 does it by hand",
    "shared/weights.py:check_tensors": "words the errors; lesson 3.7 uses it and makes it speak",
    "shared/checkpoints.py:load_gguf": "read_gguf, unpermuted and the model, which lesson 3.8 puts together by hand",
    "shared/checkpoints.py:load_gpt2": "a download and load_weights, which lesson 3.7 builds",
    "shared/checkpoints.py:load_base": "chooses a folder; lesson 3.7 starts from it",
    "shared/checkpoints.py:load_model": "config.json, load_weights and the encoding; lesson 3.7 does it by hand",
    "shared/checkpoints.py:open_folder": "names the files in a folder, and the errors where they are missing",
    "shared/checkpoints.py:publish": "to_published, and the errors of wrapped models",
    "shared/checkpoints.py:save_model": "to_published and settings for other programs; lesson 3.7 uses it",
    "shared/checkpoints.py:save_gguf": "another program's file format; lesson 3.7 names the command",
    "shared/checkpoints.py:main": "a command line",
    "shared/judge_servers.py:*": "the interfaces of other people's servers: operation; lesson 5.2b uses them",
    "shared/lora.py:check_lora": "words the errors; lesson 5.3 uses it and makes it speak",
    "shared/lora.py:unmerge_lora": "merge_lora the other way round; lesson 5.3 uses it and compares the weights",
    "shared/lora.py:published_layer": "a name in other programs; lesson 3.7 builds such a table",
    "shared/lora.py:base_checksum": "operation: tells one base from another; lesson 5.3 uses it and makes it speak",
    "shared/lora.py:save_adapter": "the names and keys of another program's files; lesson 5.3 uses it",
    "shared/lora.py:load_adapter": "the errors of damaged and foreign files; lesson 5.3 uses it",
    "shared/batches.py:as_list": "words the error for a text where a list belongs",
    "shared/conversation_files.py:*": "other people's files: operation; lesson 5.6 uses it",
    "shared/personal_data.py:*": "patterns: operation; lesson 5.6 uses it and measures it",
    "shared/conversations.py:jinja": "the template in the language of other programs; 5.1 builds one, 5.6 uses it",
    "shared/classification.py:load_score": "the output layer and the labels out of a folder; lesson 4.1 uses it",
}


def all_marked_cells():
    cells = []
    for path in notebooks.lessons():
        for i, module, cell in carry.marked_cells(notebooks.read(path)):
            cells.append(pytest.param(f"{notebooks.name_of(path)} cell {i}", module, cell.source,
                                      id=f"{notebooks.name_of(path)}-cell-{i}"))
    return cells


MARKED = all_marked_cells()


def test_the_lessons_carry_code():
    assert MARKED, "no code cell of any lesson opens with '# -> shared/NAME.py'"


@pytest.mark.parametrize(("where", "module", "source"), MARKED)
def test_cell_and_module_are_the_same_code(where, module, source):
    path = ROOT / module
    assert path.is_file(), f"{where} names {module}, which does not exist"
    difference = carry.drift(source, path.read_text(encoding="utf-8"), where, module)
    assert not difference, f"the lesson and {module} have drifted apart:\n{difference}"


def claims():
    """Which cells claim which name: {"shared/gpt.py:GPTModel": ["03_gpt/01_gpt_model cell 40"]}."""
    found = defaultdict(list)
    for parameter in MARKED:
        where, module, source = parameter.values
        for name in carry.definitions(source):
            found[f"{module}:{name}"].append(where)
    return found


def public_names():
    return {f"shared/{path.name}:{name}"
            for path in MODULES for name in carry.public_names(path.read_text(encoding="utf-8"))}


def is_excused(name):
    return name in NOT_TAUGHT or f"{name.split(':')[0]}:*" in NOT_TAUGHT


def test_every_public_name_is_taught():
    homeless = sorted(name for name in public_names() - set(claims()) if not is_excused(name))
    assert not homeless, f"no lesson builds these; claim them in a marked cell or excuse them in NOT_TAUGHT: {homeless}"


def test_no_name_is_claimed_twice():
    twice = {name: cells for name, cells in claims().items() if len(cells) > 1}
    assert not twice, f"claimed by more than one cell (the last lesson that changes a definition claims it): {twice}"


def test_the_excuses_are_needed():
    names, claimed = public_names(), claims()
    for entry, reason in NOT_TAUGHT.items():
        module, name = entry.split(":")
        assert len(reason) > 10, f"{entry} needs a reason"
        covered = [n for n in names if n.split(":")[0] == module] if name == "*" else [n for n in names if n == entry]
        assert covered, f"NOT_TAUGHT excuses {entry}, which does not exist"
        assert not set(covered) & set(claimed), f"NOT_TAUGHT excuses {entry}, but a lesson builds it"


# The testers tested, on made-up pairs.

MODULE = '''
"""A module."""
from __future__ import annotations
import math
from dataclasses import dataclass

SIZE: int = 3


@dataclass
class Config:
    """Fields.

    More about them.
    """
    width: int
    rate: float = 0.1


def area(r: float, *, scale: float = 1.0) -> float:
    """Area of a circle.

    In square metres.
    """
    total: float = math.pi * r**2
    return scale * total
'''
CELL = '''# -> shared/made_up.py
@dataclass
class Config:
    width: int
    rate: float = 0.1


SIZE = 3


def area(r, *, scale=1.0):
    """Area."""
    total = math.pi * r**2  # a comment
    return scale * total
'''


def test_docstrings_annotations_comments_and_imports_do_not_count():
    assert carry.drift(CELL, MODULE) == ""


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("r**2", "r**3", "-    total = math.pi * r ** 3"),
    ("scale * total", "total", "+    return scale * total"),
    ("rate: float = 0.1", "rate: float = 0.2", "-    rate: _ = 0.2"),
    ("    width: int\n", "", "+    width: _"),
    ("SIZE = 3", "SIZE = 4", "-SIZE = 4"),
    ("scale=1.0", "scale=1", "-def area(r, *, scale=1):"),
    ("def area(", "def volume(", "volume is not defined in"),
    ("@dataclass\n", "", "+@dataclass"),
])
def test_drift_fails_with_a_diff(old, new, expected):
    assert CELL.count(old) == 1
    assert expected in carry.drift(CELL.replace(old, new), MODULE)


def test_a_marked_cell_without_definitions_is_reported():
    assert "without a definition" in carry.drift("# -> shared/made_up.py\nprint(1)", MODULE)


@pytest.mark.parametrize("line", ["# -> shared/gpt", "#-> shared/gpt.py", "# → shared/gpt.py", "# --> shared/gpt.py",
                                  "# done -> shared/gpt.py", "# -> gpt.py"])
def test_a_misspelt_mark_raises(line):
    with pytest.raises(carry.CarryError, match="looks like a mark"):
        carry.marked_module(line + "\nx = 1")


def test_a_mark_below_the_first_line_raises():
    with pytest.raises(carry.CarryError, match="first line"):
        carry.marked_module("x = 1\n# -> shared/gpt.py")


def test_an_ordinary_first_line_is_no_mark():
    assert carry.marked_module("# scores: [T, T] -> weights\nx = 1") is None
    assert carry.marked_module("# -> shared/gpt.py\nx = 1") == "shared/gpt.py"


def test_refreshing_a_drifted_cell_mends_it():
    drifted = CELL.replace("r**2", "r**3").replace("rate: float = 0.1", "rate: float = 0.5")
    mended = carry.refreshed(drifted, MODULE)
    assert carry.drift(mended, MODULE) == ""
    assert mended.startswith("# -> shared/made_up.py\n@dataclass\nclass Config:\n    \"\"\"Fields.\"\"\"\n    width")
    assert '"""Area of a circle."""' in mended and "square metres" not in mended
    with pytest.raises(carry.CarryError, match="volume is not defined"):
        carry.refreshed(CELL.replace("area", "volume"), MODULE)


def test_an_annotation_inside_a_loop_does_not_count_and_a_field_does():
    module = "def f():\n    for i in range(3):\n        n: int = i\n        m: int\n    return n"
    cell = module.replace("n: int =", "n =").replace("        m: int\n", "")
    assert cell != module and carry.drift(cell, module) == ""
    assert carry.drift("# -> shared/x.py\nclass C:\n    a = 1", "class C:\n    a: int = 1") != ""


def test_the_command_mends_cells_and_leaves_the_module_alone(tmp_path, capsys):
    module = ROOT / "shared" / "runtime.py"
    before = module.read_bytes()
    drifted = "# -> shared/runtime.py\ndef seed_everything(seed):\n    pass"
    cells = [nbf.new_code_cell(source) for source in ("x", drifted, "y = 1")]
    cells[0].metadata["tags"] = ["setup"]
    path, broken = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    notebooks.write(nbf.new_notebook(cells=cells), path)
    notebooks.write(nbf.new_notebook(cells=[nbf.new_code_cell(drifted.replace("seed_", "sow_"))]), broken)
    assert carry.main([str(path)]) == 0
    mended = notebooks.read(path).cells
    assert carry.drift(mended[1].source, before.decode("utf-8")) == "" and "torch.manual_seed" in mended[1].source
    assert mended[0].source == notebooks.SETUP_CELL and mended[2].source == "y = 1" and module.read_bytes() == before
    assert "cell 0 (the setup cell), cell 1 (from shared/runtime.py)" in capsys.readouterr().out
    assert carry.main([str(path)]) == 0 and "nothing to do" in capsys.readouterr().out
    assert carry.main([str(broken)]) == 1 and "sow_everything is not defined" in capsys.readouterr().out


def test_public_names_leave_out_private_ones_and_imports():
    assert carry.public_names(MODULE + "\ndef _hidden(): pass\n_x = 1\n") == ["SIZE", "Config", "area"]
    assert ast.parse(CELL)  # the made-up cell is code


@pytest.mark.parametrize("path", notebooks.lessons(), ids=notebooks.name_of)
def test_docstrings_of_a_lesson_are_whole_sentences(path):
    """A docstring whose first line breaks off in the middle is carried so; its first line must stand alone."""
    broken = []
    for number, cell in notebooks.code_cells(notebooks.read(path)):
        for node in ast.walk(ast.parse(cell.source)) if carry.marked_module(cell.source) else []:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                said = ast.get_docstring(node) or "."
                broken += [f"cell {number}, {node.name}: ...{said[-40:]!r}"] if said[-1].isalnum() else []
    assert not broken, "\n".join(broken)
