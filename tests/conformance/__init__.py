"""Strangers' test suites, run against the code of this course, and against its chat service while it runs.

A suite is a module of this package, named in `SUITES` of `__main__.py`. It says

    NAME = "CS336 assignment 5"            # for the scorecard
    SOURCE = "https://github.com/..."      # where a checkout comes from
    FOLDER = "assignment5-alignment"       # what `git clone` calls it; None where it comes from PyPI, as PACKAGES[0]
    PACKAGES = ("pytest-asyncio",)         # what it needs beside ours, in the Python named by --python
    NEEDS_URL = True                       # where it asks a running service

    def run(checkout, suites, arguments):  # -> a list of Result
    def add_arguments(parser):             # only where it needs some of its own

Nothing of theirs is kept here, and nothing in their checkout is changed: `run` works on a copy that is made for it and
thrown away afterwards, or writes nothing.
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 200  # characters of a reason on the scorecard
SECONDS = 1800  # that a suite may take


@dataclass(frozen=True)
class Result:
    """What one test of a suite came to: `outcome` is "passed", "failed" or "skipped", the last two with a `reason`."""

    test: str
    outcome: str
    reason: str = ""


def one_line(text):
    text = " ".join(str(text).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def commit_of(checkout):
    """The commit of a checkout, as 12 digits; "+" after it where files differ from that commit or are missing.

    "no git" where it is none, such as an unpacked archive: nobody can then say what was run.
    """
    git = ["git", "-C", str(checkout)]
    try:
        top, commit = (subprocess.run([*git, "rev-parse", what], capture_output=True, text=True, check=True).stdout
                       for what in ("--show-toplevel", "HEAD"))  # fmt: skip
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "no git"
    if Path(top.strip()).resolve() != Path(checkout).resolve():
        return "no git"  # the repository around it says nothing about it
    return commit[:12] + "+" * bool(changed.strip())


def environment():
    """For pytest on their files: our code importable, float32 on the CPU, no network, no plugins."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return kept | {"PYTHONPATH": str(ROOT), "LLM_DTYPE": "float32", "LLM_DEVICE": "cpu", "HF_HUB_OFFLINE": "1",
                   "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                   "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}  # fmt: skip


def their_environment(**settings):
    """For suites that ask a service from a Python of their own: none of our paths, no proxy before this machine."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("PYTEST_")}
    return kept | {"NO_PROXY": "*", "no_proxy": "*", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"} | settings


def versions(python, packages):
    """{package: its version in that Python, or None where it is not installed}."""
    code = ("import importlib.metadata as m, sys\nhere = {d.name.lower(): d.version for d in m.distributions()}\n"
            "print(*(here.get(name, '-') for name in sys.argv[1:]))")  # fmt: skip
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return dict.fromkeys(packages)
    return dict(zip(packages, (None if found == "-" else found for found in done.stdout.split()), strict=True))


def run_pytest(folder, arguments, python=sys.executable, env=None):
    """Run pytest in `folder` and return its results; a run that broke off, or had no test, is a failure of its own."""
    with tempfile.TemporaryDirectory() as made:
        report = Path(made) / "report.xml"
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        return run_command(command, folder, report, environment() if env is None else env)


def run_command(command, folder, report, env):
    """Run a command that writes `report`, in JUnit's format, and return the results in it."""
    name = Path(command[2] if command[1] == "-m" else command[0]).name
    try:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [Result("the run", "failed", f"took more than {SECONDS} seconds")]
    try:
        results = read_report(report)
    except (OSError, ElementTree.ParseError):  # it broke off
        results = []
    if done.returncode not in (0, 1) or not results:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["it printed nothing"]
        results.append(Result("the run", "failed", one_line(f"{name} ended with {done.returncode}: {last[0]}")))
    return results


def read_report(report):
    """The results in a report that pytest wrote with --junitxml."""
    results = []
    for case in ElementTree.parse(report).iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        test = f"{module.replace('.', '/')}.py::{name}" if module else name
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error"):
                outcome, reason = "failed", child.get("message") or child.text or ""
                break
            if child.tag == "skipped":
                outcome, reason = "skipped", child.get("message") or ""
        results.append(Result(test, outcome, one_line(re.sub(r"^Skipped: ", "", reason))))
    return results
