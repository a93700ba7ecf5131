"""Open JupyterLab on the first lesson: `python -m tools.lab [LESSON] [JupyterLab's own options]`."""

import subprocess
import sys

from tools import setup


def main(arguments=None):
    rest = setup.enter("tools.lab", sys.argv[1:] if arguments is None else arguments)

    from tools import notebooks

    if rest and rest[0].endswith(".ipynb"):
        lesson, rest = rest[0], rest[1:]
    else:
        lesson = notebooks.lessons()[0].relative_to(notebooks.ROOT).as_posix()
    quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *quiet, *rest, lesson], cwd=notebooks.ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # JupyterLab asks by itself whether it should stop
            continue


if __name__ == "__main__":
    sys.exit(main())
