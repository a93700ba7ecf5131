"""Point every lesson at your repository: `python -m tools.badges OWNER/REPOSITORY`.

Rewrites the link of the Colab badge and the address that the setup cell clones from: in every notebook, in
tools/setup_cell.py and in the README.
The course comes with `your_account/build-a-gpt`, which no one can own: account names have no underscore.
"""

import re
import sys

from tools import notebooks

LINKS = (re.compile(r"(https://colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(?=/blob/)"),
         re.compile(r"(\bclone\b[^\n]{0,40}https://github\.com/)[\w.-]+/[\w.-]+"))


def rewritten(text, repository):
    """The text of a file with the badge's link and the clone's address pointing at `repository`."""
    for link in LINKS:
        text = link.sub(rf"\g<1>{repository}", text)
    return text


def main(arguments=None, root=notebooks.ROOT):
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or not re.fullmatch(r"[A-Za-z0-9_-]+/[\w.-]+", arguments[0]):
        raise SystemExit(f"usage: python -m tools.badges OWNER/REPOSITORY (got: {' '.join(arguments) or 'nothing'})")
    for path in [*notebooks.lessons(root), root / "tools" / "setup_cell.py", root / "README.md"]:
        if path.is_file():
            before = path.read_bytes().decode("utf-8")
            after = rewritten(before, arguments[0])
            if after != before:
                path.write_bytes(after.encode("utf-8"))
            print(f"{path.relative_to(root).as_posix()}: {'rewritten' if after != before else 'nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
