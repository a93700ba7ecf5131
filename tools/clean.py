"""Remove what the tools made: build/ and caches. `.venv`, your copies in work/, data and checkpoints stay."""

import argparse
import shutil
import sys

from tools.setup import ROOT

CACHES = {"__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints"}
KEPT = {".git", ".venv", "data", "work"}


def remove_caches(folder, kept=KEPT):
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in kept:
            if path.name in CACHES:
                shutil.rmtree(path, ignore_errors=True)
            else:
                remove_caches(path, kept - {"data", "work"})  # only those at the top are kept


def main(arguments=None, root=ROOT):
    argparse.ArgumentParser(prog="python -m tools.clean", allow_abbrev=False, description=__doc__).parse_args(arguments)
    shutil.rmtree(root / "build", ignore_errors=True)
    remove_caches(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
