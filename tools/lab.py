"""Open JupyterLab on a lesson, with the whole course as its root: `python -m tools.lab [LESSON] [OPTION ...]`.

LESSON is a number such as 2.3, the path of a file of the course, or a pattern as in tools.run; without it the first
lesson opens. It stands before all options. These are JupyterLab's own: `--no-browser`, `--port=8899`, and what
`.venv/bin/jupyter lab --help` lists. `--no-venv` stays in the Python that is running.
"""

import subprocess
import sys
from urllib.parse import quote

from tools import notebooks, setup

SETTINGS = notebooks.ROOT / "tools" / "jupyterlab"  # no question about news; the reader's own settings go first


def page_of(lesson=None):
    """The path of the file to open, from the course's root; SystemExit if there is none."""
    if lesson is None:
        path = notebooks.lessons()[0]
    elif (notebooks.ROOT / lesson).is_file():
        path = (notebooks.ROOT / lesson).resolve()
        if not path.is_relative_to(notebooks.ROOT):
            raise SystemExit(f"{lesson} is not in the course folder {notebooks.ROOT}")
    else:
        path = notebooks.chosen([lesson])[0]
    return path.relative_to(notebooks.ROOT).as_posix()


def command(page, options):
    """How JupyterLab is started; a setting that the reader gives takes the place of ours."""
    ours = {"ServerApp.root_dir": notebooks.ROOT, "ServerApp.preferred_dir": notebooks.ROOT,
            "LabApp.default_url": f"/lab/tree/{quote(page)}", "LabApp.app_settings_dir": SETTINGS,
            "LabApp.news_url": None, "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate"}
    given = {option.partition("=")[0] for option in options}
    settings = [f"--{name}={value}" for name, value in ours.items() if f"--{name}" not in given]
    return [sys.executable, "-m", "jupyterlab", *settings, *options]


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    given = [a for a in arguments if a != "--no-venv"]
    lesson, options = (given[0], given[1:]) if given and not given[0].startswith("-") else (None, given)
    page = page_of(lesson)  # a lesson that is not there is told before the set-up
    setup.enter("tools.lab", arguments)
    process = subprocess.Popen(command(page, options), cwd=notebooks.ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # JupyterLab asks by itself whether it should stop
            continue


if __name__ == "__main__":
    sys.exit(main())
