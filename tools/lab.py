"""Open JupyterLab on a lesson: `python -m tools.lab [LESSON] [--fresh] [--course] [JupyterLab's own options]`.

LESSON is a number such as 2.3, the path of a file of the course, or, where it stands first, a pattern as in tools.run;
without it the first lesson opens. JupyterLab's options are such as `--no-browser`, `--port=8899` and what
`.venv/bin/jupyter lab --help` lists (`--Application.log_level=INFO`: all that it has to say).

What opens is your own copy of the course in `work/`: write into it as you like, git and the tests do not look there.
It is made on first use. What you have changed is never overwritten; the rest follows the course's updates.
  --fresh     open the course's present version of LESSON; your old copy stays beside it, under a number
  --course    open the course itself and not the copy (for those who change lessons)
  --no-venv   stay in the Python that is running
"""

import json
import re
import shutil
import subprocess
import sys
from urllib.parse import quote

from shared.files import read_json, sha256_of, write_atomically
from tools import notebooks, setup
from tools.settings import check_paths

ROOT = notebooks.ROOT
SETTINGS = ROOT / "tools" / "jupyterlab"  # no question about news (the reader's own settings go first); custom.css
PAGES = ("*.md", "LICENSE", "tools/*.svg", "pictures/*", "shared/*/README.md")  # what lessons and README lead to
ORIGINS = ".origins.json"  # in the copy: the checksum of the file that each file was copied from


def path_of(lesson=None):
    """The path of the file to open, from the course's root; SystemExit if there is none."""
    if lesson is None:
        path = notebooks.lessons(ROOT)[0]
    elif (ROOT / lesson).is_file():
        path = (ROOT / lesson).resolve()
        if not path.is_relative_to(ROOT):
            raise SystemExit(f"{lesson} is not in the course folder {ROOT}")
    else:
        path = notebooks.chosen([lesson], ROOT)[0]
    return path.relative_to(ROOT).as_posix()


def lesson_and_options(arguments):
    """(lesson or None, the others): what stands first and is no option, or else what looks like a lesson."""
    looks_like_one = (a for a in arguments if re.fullmatch(r"\d\.\d+[a-z]?", a) or (ROOT / a).is_file())
    lesson = arguments[0] if arguments and not arguments[0].startswith("-") else next(looks_like_one, None)
    return lesson, [a for a in arguments if a != lesson]


def copy_course(root, work, fresh=None):
    """Bring the learner's copy `work` of the course `root` up to date; returns (lessons written, files left as old).

    A file is copied where it is missing, unchanged since it was copied, or `fresh` (a path from the root): then the
    old file is renamed. Unchanged copies of what the course has no more go. Raises OSError.
    """
    from filelock import FileLock  # not above: --help comes before the set-up

    work.mkdir(exist_ok=True)
    with FileLock(work / ".lock", timeout=60):  # two at once would get in each other's way
        return _copy_course(root, work, fresh)


def _copy_course(root, work, fresh):
    note = work / ORIGINS
    try:
        before = read_json(note, str)
    except (OSError, ValueError):  # missing, or damaged: then a file counts as changed unless it is the course's
        before = {}
    origins, written, old = dict(before), [], []
    for source in [*notebooks.lessons(root), *(page for pattern in PAGES for page in root.glob(pattern))]:
        name, now = source.relative_to(root).as_posix(), sha256_of(source)
        copy = work / name
        changed = copy.is_file() and sha256_of(copy) not in (now, origins.get(name))
        if changed and name == fresh:
            number = next(n for n in range(1, 10_000) if not copy.with_stem(f"{copy.stem}-{n}").exists())
            print(f"your old copy: {copy.rename(copy.with_stem(f'{copy.stem}-{number}'))}")
        elif changed:
            old += [source] if now != origins.get(name) else []
            continue
        if not copy.is_file() or now != origins.get(name):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(copy) as part:
                shutil.copyfile(source, part)
            origins[name] = now
            written += [copy] if source.suffix == ".ipynb" else []
    for name in [name for name in origins if not (root / name).is_file()]:  # renamed in the course, or gone
        if (work / name).is_file() and sha256_of(work / name) == origins[name]:
            (work / name).unlink()
        del origins[name]
    sign(written)  # before the note: a copy that was not signed, because of a kill, is made again
    if origins != before:
        with write_atomically(note) as part:
            part.write_text(json.dumps(origins, indent=1), encoding="utf-8")
    return written, old


def sign(paths):
    """Tell Jupyter that the notebooks' saved outputs are ours: without it JupyterLab hides their drawings."""
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    for path in paths:
        notary.sign(notebooks.read(path))


def command(folder, page, options):
    """How JupyterLab is started; a setting that the reader gives takes the place of ours.

    It says little: among all its notes, a reader would miss the address. What it sends to the kernels is encrypted
    where ZeroMQ can do that; otherwise each kernel warns of eavesdroppers.
    """
    import zmq

    ours = {"ServerApp.root_dir": folder, "ServerApp.preferred_dir": folder,
            "LabApp.default_url": f"/lab/tree/{quote(page)}", "LabApp.app_settings_dir": SETTINGS,
            "LabApp.news_url": None, "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "LabApp.custom_css": True, "ServerApp.tornado_settings": f"static_custom_path={SETTINGS}",
            "Application.log_level": "ERROR"}
    if zmq.has("curve"):
        ours["KernelManager.transport_encryption"] = "auto"
    given = {option.partition("=")[0] for option in options}
    settings = [f"--{name}={value}" for name, value in ours.items() if f"--{name}" not in given]
    return [sys.executable, "-m", "jupyterlab", *settings, *options]


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    given = [a for a in arguments if a not in ("--no-venv", "--fresh", "--course")]
    lesson, options = lesson_and_options(given)
    page = path_of(lesson).removeprefix("work/")  # a lesson that is not there is told before the set-up
    setup.enter("tools.lab", arguments)
    try:
        check_paths()
    except ValueError as error:
        raise SystemExit(error) from None
    folder, old = ROOT if "--course" in arguments else ROOT / "work", []
    if not folder.resolve().is_relative_to(ROOT.resolve()):
        raise SystemExit(f"{folder} leads to {folder.resolve()}, where the lessons would not find `shared`")
    try:
        if folder == ROOT:
            sign(notebooks.lessons(ROOT))
        else:
            _, old = copy_course(ROOT, folder, page if "--fresh" in arguments else None)
    except OSError as error:
        raise SystemExit(f"{folder} cannot be made ready for JupyterLab: {error}") from None
    if old:
        names = [notebooks.number_of(p) if p.suffix == ".ipynb" else p.relative_to(ROOT).as_posix() for p in old]
        print(f"the course has a newer version of {', '.join(names)}, and you have changed your copy: it stays. "
              f'For the new one: make lab ARGS="--fresh {names[0]}"')
    if not (folder / page).is_file():
        raise SystemExit(f'your copy has no {page}; the course has: make lab ARGS="{page} --course"')
    print(f"opening {folder / page} (to stop: Ctrl-C, and then y)", flush=True)
    process = subprocess.Popen(command(folder, page, options), cwd=folder)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # JupyterLab asks by itself whether it should stop
            continue


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before JupyterLab was there
        sys.exit(130)
