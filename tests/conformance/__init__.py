"""Strangers' test suites, run from their own checkouts against the code of this course.

A suite is a module of this package, named in `SUITES` of `__main__.py`. It says

    NAME = "CS336 assignment 5"            # for the scorecard
    SOURCE = "https://github.com/..."      # where a checkout comes from
    FOLDER = "assignment5-alignment"       # what `git clone` calls it

    def run(checkout, suites, arguments):  # -> a list of Result
    def add_arguments(parser):             # only where it needs some, such as the address of a server

Nothing of theirs is kept here, and nothing in their checkout is changed: `run` works on a copy that is made for it and
thrown away afterwards.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 200  # characters of a reason on the scorecard
SECONDS = 600  # that a suite may take


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


def run_pytest(folder, arguments):
    """Run pytest in `folder` and return its results; a run that broke off, or had no test, is a failure of its own."""
    report = Path(folder) / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [Result("the run", "failed", f"took more than {SECONDS} seconds")]
    results = read_report(report) if report.is_file() else []
    if done.returncode > 1 or not results:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["it printed nothing"]
        results.append(Result("the run", "failed", one_line(f"pytest ended with {done.returncode}: {last[0]}")))
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
