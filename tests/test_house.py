"""The house: one room per idea, in the order in which the lessons build them; each imports only what stands below."""

import ast
import subprocess
import sys

import pytest

from tools import notebooks

SHARED = notebooks.ROOT / "shared"
ORDER = (
    "runtime", "drawing", "files", "data", "tokenizer_files", "tokenizer", "smollm_tokenizer", "batches", "bigrams",
    "attention", "gpt", "llama", "llama_files", "loss", "sampling", "generation", "resume", "training", "gguf",
    "weights", "checkpoints", "classification", "instructions", "personal_data", "conversation_files", "conversations",
    "nf4", "lora", "preference", "policy", "metrics", "evaluation", "choices", "judge", "judge_servers",
)  # fmt: skip
FILES = sorted(SHARED.rglob("*.py"))
LONGEST = 250  # lines: what can be read in one sitting


def name_of(path):
    return path.relative_to(SHARED.parent).as_posix()


def room_of(path):
    """`gpt` for shared/gpt.py, `data` for shared/data/cache.py."""
    return path.relative_to(SHARED).with_suffix("").parts[0]


def rooms_imported(path):
    """The rooms that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: import from shared by name, not relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("shared.")}


def test_every_module_has_its_place():
    assert (SHARED / "__init__.py").read_text(encoding="utf-8") == ""
    strangers = {room_of(path) for path in FILES} - {"__init__", *ORDER}
    assert not strangers, f"give these their place in ORDER, and in the table of CONTRIBUTING.md: {sorted(strangers)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_lead_downward(path):
    room = room_of(path)
    below = ORDER[: ORDER.index(room)] if room in ORDER else ()
    upward = rooms_imported(path) - {room if path.parent != SHARED else "", *below}
    assert not upward, f"{name_of(path)} may import what stands before {room} in ORDER, and not {sorted(upward)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_is_read_in_one_sitting(path):
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length <= LONGEST, f"{name_of(path)} has {length} lines; at most {LONGEST}"


WATCHED_IMPORTS = """
import importlib, os, sys, sysconfig

for name in {libraries}:
    importlib.import_module(name)
code = tuple(os.path.realpath(place) for place in {{sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}})
seen = []


def watch(event, arguments):
    if event in ("open", "os.mkdir", "os.putenv", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"):
        what = os.path.realpath(arguments[0]) if event == "open" and not isinstance(arguments[0], int) else arguments
        python = str(what).endswith((".py", ".pyc", ".so")) or event == "open" and str(what).startswith(code)
        seen.extend([] if python else [(event, what)])


sys.addaudithook(watch)
for name in {modules}:
    importlib.import_module(name)
assert not seen, seen
"""


def test_importing_does_nothing_that_shows():
    """No line is printed, and no file read but Python code: data and settings are asked for when they are needed."""
    modules = [name_of(path).removesuffix(".py").replace("/", ".") for path in FILES if "__" not in path.name]
    libraries = ["torch", "matplotlib.pyplot", "requests", "tiktoken", "safetensors.torch"]
    script = WATCHED_IMPORTS.format(modules=modules, libraries=libraries)
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=SHARED.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
