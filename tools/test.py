"""Prove the course: `python -m tools.test [--all] [pytest's own arguments]`.

One pass: ruff, then pytest over tests/ and every lesson, spread over two workers. `--all` adds two passes: one with the
network blocked, no mirror and an empty data folder, and one with the package versions of Colab. Arguments of pytest
name a part, for instance: python -m tools.test -k mask 02_attention
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import setup

ROOT = setup.ROOT
COLAB = "tests/requirements-colab.txt"
COLAB_VENV = ROOT / "build" / "colab-venv"
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
    return fair | environment | {"PYTHONUTF8": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


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


def run(title, command, environment):
    print(f"\n=== {title}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode


def main(arguments=None):
    arguments = setup.enter("tools.test", sys.argv[1:] if arguments is None else arguments,
                            (setup.COURSE, setup.TESTS))
    everything = "--all" in arguments
    arguments = [a for a in arguments if a != "--all"]
    environment = shared_out(dict(os.environ))
    results = {"ruff": run("ruff", [sys.executable, "-m", "ruff", "check", "--quiet"], environment)}
    results["pytest"] = run("lessons and tests", pytest_command(sys.executable, arguments), environment)
    if everything:
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
            jupyter = {"JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}  # nbconvert's templates lie there
            results["with Colab's versions"] = run(
                "with Colab's versions", pytest_command(python, arguments), environment | jupyter)
    failed = [name for name, status in results.items() if status]
    if failed and (everything or failed != ["pytest"]):
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
