"""Run lessons and save their outputs in place: `python -m tools.save NOTEBOOK ... | --all`. For maintainers.

Each notebook runs from top to bottom at quick scale on the CPU with the real data, in float32 whatever the processor is
fast in, is cleaned (tools/hygiene.py) and written back. A notebook that fails, or whose outputs would break the rules
for saved outputs, is left as it was.
"""

import argparse
import os
import sys
from pathlib import Path

from tools import setup

ENVIRONMENT = {"LLM_SCALE": "quick", "LLM_DEVICE": "cpu", "LLM_DTYPE": "float32"}


def save(path):
    """Run, clean, check and write one notebook; returns what is wrong, one sentence each ([] when it was written)."""
    from shared.files import write_atomically
    from tools import execute, hygiene, notebooks

    (result,) = execute.run_all([Path(path)], environment=ENVIRONMENT)
    if result.error:
        return [f"cell {result.cell}: {result.error}", *result.trace.splitlines()]
    notebook = hygiene.clean(result.notebook)
    size = len(notebooks.text_of(notebook).encode("utf-8"))
    found = [f"{size / 1000:.0f} kB; at most {hygiene.MAX_KB}"] if size > 1000 * hygiene.MAX_KB else []
    found += hygiene.saved_outputs(notebook)
    if not found:
        with write_atomically(path) as part:
            notebooks.write(notebook, part)
    print(f"{result.name}: {'left as it was' if found else 'saved'} ({result.seconds:.1f} s) {result.headline}")
    return found


def sample_data():
    """Names of all data sets of which only the bundled sample is there."""
    from shared.data import fetch
    from shared.data.places import is_sample
    from shared.data.registry import REGISTRY

    return [name for name, entry in REGISTRY.items() if entry.sample and is_sample(fetch(name))]


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m tools.save", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--all", action="store_true", help="all lessons")
    parser.add_argument("--allow-sample", action="store_true", help="go on although data is a bundled sample (trials)")
    parser.add_argument("--no-venv", action="store_true", help="stay in the Python that is running")
    options = parser.parse_args(arguments)
    if bool(options.notebooks) == options.all:
        parser.error("name notebooks, or say --all")
    options.notebooks = [path.resolve() for path in options.notebooks]
    for path in options.notebooks:
        if not path.is_file():
            parser.error(f"there is no {path}")
    setup.enter("tools.save", [str(Path(a).resolve()) if a.endswith(".ipynb") else a for a in arguments])

    from shared.data.places import data_dir, own_chats
    from tools import notebooks

    os.environ.pop("LLM_TEXT", None)
    samples = sample_data()
    if samples and not options.allow_sample:
        raise SystemExit(f"not saved: bundled samples stand in for {', '.join(samples)}, and saved outputs must come "
                         "from the real data. Set LLM_MIRROR, or connect to the network.")
    paths = options.notebooks or notebooks.lessons()
    if (own := own_chats()) and any(path.name == "06_conversations.ipynb" for path in paths):
        raise SystemExit(f"not saved: {own[0].parent} holds chats of your own, and lesson 5.6 would print them "
                         "into the notebook. Move the folder away first.")
    own = sorted(data_dir().glob("*-my_chats"))
    if own and any(path.name == "08_chat_service.ipynb" for path in paths):
        raise SystemExit(f"not saved: {own[0]} is a model trained on chats of your own, and lesson 5.8 would let it "
                         "speak in the notebook. Move the folder away first.")
    failed = 0
    for path in paths:
        if found := save(path):
            failed += 1
            print("\n".join(f"    {line}" for line in found))
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        os._exit(130)  # the threads that waited for a kernel, killed by now, need no farewell
