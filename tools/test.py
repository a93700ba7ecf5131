"""Prove the course: `python -m tools.test [--quick | --all] [pytest's own arguments]`.

One pass: ruff, then pytest over tests/ and every lesson, spread over two workers. Arguments of pytest name a part, for
instance: python -m tools.test -k mask 02_attention. For pytest's own help: python -m pytest --help in .venv.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import notebooks, setup

ROOT = setup.ROOT
COLAB = "tests/requirements-colab.txt"
COLAB_VENV = ROOT / "build" / "colab-venv"
FORMATS = ("float32", "bfloat16")  # what the CPU can train in
TRAINING = ("tests/test_training.py", "tests/test_resume.py", "tests/test_pretrain.py")
SLOW = (  # left out by --quick: they run lessons, servers, browsers, other processes; 5 seconds and more each
    "tests/test_bites.py", "tests/test_chat.py", "tests/test_chat_page.py", "tests/test_classify.py",
    "tests/test_colab.py", "tests/test_corpus.py",
    "tests/test_judge.py", "tests/test_lab.py", "tests/test_own_text.py", "tests/test_pretrain.py",
    "tests/test_tools.py", "tests/data/test_download.py")
CLOSED_PORT = "http://127.0.0.1:9"  # nothing listens there


def pytest_command(python, arguments):
    """pytest over two workers, each with its share of the threads, unless the arguments say otherwise."""
    spread = [] if any(a.startswith(("-n", "--numprocesses", "--pdb")) for a in arguments) else [
        "-n", "2", "--dist", "loadfile"]
    early = ["-p", "tools.notebooks"]  # before nbval imports nbformat, which then takes two seconds longer
    return [str(python), "-m", "pytest", *early, *spread, *arguments]


def shared_out(environment):
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    fair = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    ours = {"PYTHONUTF8": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONDONTWRITEBYTECODE": ""}  # hundreds of processes: each would compile `shared` anew
    return fair | environment | ours


def without_network(environment, folder):
    """An environment in which nothing but this machine can be reached and no data has been brought."""
    kept = {k: v for k, v in environment.items() if k not in ("LLM_MIRROR", "LLM_OFFLINE", "NO_PROXY", "no_proxy")}
    path = [str(ROOT / "tools" / "no_network"), environment.get("PYTHONPATH", "")]
    blocked = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "LLM_DATA_DIR": str(Path(folder) / "data"),
               "TIKTOKEN_CACHE_DIR": str(Path(folder) / "tiktoken"), "HF_HUB_OFFLINE": "1",
               "NO_PROXY": "localhost,127.0.0.1,::1", "no_proxy": "localhost,127.0.0.1,::1"}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        blocked |= {name: CLOSED_PORT, name.lower(): CLOSED_PORT}
    return kept | blocked


def colab_python():
    """The interpreter of an environment with Colab's versions in front of everything that `sys.executable` has."""
    python = setup.python_of(COLAB_VENV)
    if not setup.is_installed(COLAB_VENV, (COLAB,)):
        setup.make_venv(COLAB_VENV)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        here, there = (subprocess.run([p, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
                       for p in (sys.executable, python))
        Path(there, "course.pth").write_text(here + "\n", encoding="utf-8")  # searched after the environment's own
        print(f"installing {COLAB}", flush=True)
        if setup.pip(COLAB_VENV, "-r", COLAB):
            raise setup.SetupError(f"pip could not install {COLAB}; its own words stand above")
        setup.stamp(COLAB_VENV, (COLAB,))
    return python


def other_formats(environment):
    """The number formats in which the main pass does not train."""
    from shared import runtime

    wanted = environment.get("LLM_DTYPE", "").strip().lower() or "auto"
    if wanted == "auto":
        wanted = str(runtime.autocast_dtype("cpu") or "float32").removeprefix("torch.")
    return [name for name in FORMATS if name != wanted]


def names_a_part(arguments):
    """Whether the arguments of pytest name files or folders."""
    return any((ROOT / a.split("::")[0]).exists() for a in arguments if not a.startswith("-"))


def quick_arguments(arguments):
    """What pytest gets for --quick: no lesson is run, and no slow file but those that are named."""
    if names_a_part(arguments):
        return arguments
    return ["tests", *(f"--ignore={path}" for path in SLOW), *arguments]


def changed_lessons():
    """The lessons that differ from the last commit, as git says; none where it cannot be asked."""
    try:
        command = ["git", "status", "--porcelain", "--no-renames", "--untracked-files=all"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    changed = {line[3:] for line in said.splitlines()}
    return [name for path in notebooks.lessons() if (name := path.relative_to(ROOT).as_posix()) in changed]


def run(title, command, environment):
    print(f"\n=== {title}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode


def arguments_of(arguments):
    """(our own options, what pytest gets); prints the help and ends when that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.test", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="after each edit, in a minute: ruff, the rules for saved "
                       "notebooks, parity of lessons and shared, the fast tests; no lesson is run")
    which.add_argument("--all", action="store_true", help="four passes: this one; the lessons and the tests of "
                        "training in the other number format; everything with the network blocked, no mirror and an "
                        "empty data folder; everything with the package versions of Colab")
    parser.add_argument("--no-venv", action="store_true", help="stay in the Python that is running")
    return parser.parse_known_args(arguments)


def main(arguments=None):
    given = sys.argv[1:] if arguments is None else arguments
    options, arguments = arguments_of(given)
    setup.enter("tools.test", given, (setup.COURSE, setup.TESTS))
    environment = shared_out(dict(os.environ))
    results = {"ruff": run("ruff", [sys.executable, "-m", "ruff", "check", "--quiet"], environment)}
    if options.quick:
        arguments = quick_arguments(arguments)
    title = "fast tests" if options.quick else "lessons and tests"
    results["pytest"] = run(title, pytest_command(sys.executable, arguments), environment)
    if options.quick and (changed := changed_lessons()):
        print(f"changed and not run: make test ARGS=\"{' '.join(changed)}\"")
    if options.all:
        folders = sorted({path.parent.name for path in notebooks.lessons()})
        part = arguments if names_a_part(arguments) else [*arguments, *folders, *TRAINING]
        for name in other_formats(environment):
            results[f"in {name}"] = run(f"lessons and tests of training in {name}",
                                        pytest_command(sys.executable, part), environment | {"LLM_DTYPE": name})
        with tempfile.TemporaryDirectory(prefix="no-data-") as folder:
            results["without network and data"] = run(
                "without network, mirror and data", pytest_command(sys.executable, arguments),
                without_network(environment, folder))
        try:
            python = colab_python()
        except setup.SetupError as error:
            print(f"set-up: {error}")
            results["with Colab's versions"] = 1
        else:
            share = Path(sys.prefix) / "share" / "jupyter"  # nbconvert's templates lie there, and JupyterLab's pages
            jupyter = {"JUPYTER_PATH": str(share), "JUPYTERLAB_DIR": str(share / "lab")}
            results["with Colab's versions"] = run(
                "with Colab's versions", pytest_command(python, arguments), environment | jupyter)
    failed = [name for name, status in results.items() if status]
    if failed and (options.all or failed != ["pytest"]):
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
