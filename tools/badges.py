"""Point every lesson at your repository: `python -m tools.badges OWNER/REPOSITORY`.

Rewrites the Colab badge (its link, and the path of its picture, which lies in the repository) and the address that the
setup cell clones from: in every notebook, in tools/setup_cell.py and in the README.
The course comes with `your_account/build-a-gpt`, which no one can own: account names have no underscore.
"""

import argparse
import re

from shared.files import command_line
from tools import notebooks

PICTURE = re.compile(r"(\[!\[Open in Colab\]\()[^)\s]*(?=\)\]\()")
LINKS = (re.compile(r"(https://colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(?=/blob/)"),
         re.compile(r"(\bclone\b[^\n]{0,40}https://github\.com/)[\w.-]+/[\w.-]+"))


def rewritten(text, repository, picture):
    """The text of a file with the badge's link and the clone's address pointing at `repository`."""
    for link in LINKS:
        text = link.sub(rf"\g<1>{repository}", text)
    return PICTURE.sub(rf"\g<1>{picture}", text)


def main(arguments=None, root=notebooks.ROOT):
    parser = argparse.ArgumentParser(prog="python -m tools.badges", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", metavar="OWNER/REPOSITORY")
    repository = parser.parse_args(arguments).repository
    if not re.fullmatch(r"[A-Za-z0-9_-]+/[\w.-]+", repository):
        parser.error(f"{repository!r} is not OWNER/REPOSITORY")
    for path in [*notebooks.lessons(root), root / "tools" / "setup_cell.py", root / "README.md"]:
        if path.is_file():
            before = path.read_bytes().decode("utf-8")
            up = "../" * (len(path.relative_to(root).parts) - 1)
            after = rewritten(before, repository, up + notebooks.BADGE)
            if after != before:
                path.write_bytes(after.encode("utf-8"))
            print(f"{path.relative_to(root).as_posix()}: {'rewritten' if after != before else 'nothing to do'}")
    return 0


if __name__ == "__main__":
    command_line(main)
