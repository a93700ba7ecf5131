"""Strangers' tests on our code: `python -m tests.conformance --suites DIR [--only NAME] [URL]`.

DIR holds the suites' own checkouts, each in a folder of the name that `git clone` gives it. Those of the chat service
run against the one at URL, which is to be started first, with the names of models that the suites ask for. llm-comply
needs a chat model, which ends its answers by itself; the others test only the form, so the small course base, named
first, does for them. schemathesis asks every model for answers as long as the context, so that is short:

    python 05_instruction_finetune/chat.py course_base smollm2 --context 128 \\
        --alias gpt-5.4 --alias gpt-4o-mini --alias gpt-3.5-turbo --alias gpt-3.5-turbo-instruct
    python -m tests.conformance --suites DIR --python suites/bin/python http://127.0.0.1:8000

llama.cpp's tests of safety ask a second service like it, which has a key (`--with-key`).
Their packages do not belong into the course's environment: `python -m venv suites`, pip install there what is asked
for, and name its Python with --python. Prints a scorecard: suite, commit ("+" after it: with changes) or version, how
many tests passed, failed and were skipped, and the reason for each that did not pass. The exit status is 0 where all
that could run passed; 1 where a test failed, or a suite had none that passed; 2 where no suite could run.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import requests

from shared.files import command_line
from tests.conformance import (
    commit_of,
    cs336,
    langchain,
    llama_cpp,
    llm_comply,
    one_line,
    openai_python,
    schemathesis,
    versions,
)  # fmt: skip

SUITES = {"cs336": cs336, "llm-comply": llm_comply, "openai-python": openai_python, "langchain": langchain,
          "schemathesis": schemathesis, "llama.cpp": llama_cpp}  # fmt: skip
OUTCOMES = ("passed", "failed", "skipped")


def scorecard(rows):
    """The rows (suite, commit, results, seconds) as text: a table, and below it what did not pass, and why."""
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'suite':{width}}  {'version':13}  {'passed':>6}  {'failed':>6}  {'skipped':>7}  {'seconds':>7}"]
    for name, commit, results, seconds in rows:
        passed, failed, skipped = ([r.outcome for r in results].count(outcome) for outcome in OUTCOMES)
        lines.append(f"{name:{width}}  {commit:13}  {passed:6}  {failed:6}  {skipped:7}  {seconds:7.1f}")
    for name, _, results, _ in rows:
        for outcome in OUTCOMES[1:]:
            those = [r for r in results if r.outcome == outcome]
            lines += ["", f"{name}, {outcome}:"] * bool(those)
            lines += [f"  {r.test}\n      {r.reason}" for r in those]
    return "\n".join(lines)


def is_good(results):
    """True where nothing failed and something passed: a suite whose tests are all skipped proves nothing."""
    outcomes = {result.outcome for result in results}
    return "passed" in outcomes and "failed" not in outcomes


def place_of(suite, arguments):
    """The folder of a suite's checkout; None where it comes from PyPI."""
    folder = getattr(suite, "FOLDER", None)
    return arguments.suites / folder if folder else None


def why_not(suite, arguments):
    """Why a suite cannot run here, in words; None where it can."""
    checkout = place_of(suite, arguments)
    if checkout is not None and not checkout.is_dir():
        return f"no folder {checkout}; git clone {suite.SOURCE} {checkout}"
    if getattr(suite, "NEEDS_URL", False) and not arguments.url:
        return "it needs the URL of the running chat service"
    found = versions(arguments.python, getattr(suite, "PACKAGES", ()))
    if lost := [name for name, version in found.items() if version is None]:
        return f"{arguments.python} has no {', '.join(lost)}; {arguments.python} -m pip install {' '.join(lost)}"
    return None


def version_of(suite, arguments):
    """The commit of a suite's checkout, or the version of its package."""
    checkout = place_of(suite, arguments)
    return commit_of(checkout) if checkout else versions(arguments.python, suite.PACKAGES)[suite.PACKAGES[0]]


def models_at(url):
    """The names of a service's models, and the one to chat with: the first that says `is_chat`, or the first of all.

    Raises OSError or ValueError where no service answers.
    """
    told = requests.get(f"{url}/v1/models", timeout=30)
    told.raise_for_status()
    models = told.json()["data"]
    chat = next((model for model in models if model.get("is_chat")), models[0])
    return [model["id"] for model in models], chat["id"]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("url", nargs="?", metavar="URL", help="of the chat service, such as http://127.0.0.1:8000")
    parser.add_argument("--suites", type=Path, required=True, metavar="DIR", help="the folder with their checkouts")
    parser.add_argument("--only", choices=SUITES, help="one suite instead of all that are there")
    parser.add_argument("--python", default=sys.executable, metavar="FILE", help="the Python that has their packages")
    for suite in SUITES.values():
        getattr(suite, "add_arguments", lambda parser: None)(parser)
    arguments = parser.parse_args(argv)
    if not arguments.suites.is_dir():
        parser.error(f"--suites {arguments.suites} is no folder")
    python = shutil.which(arguments.python)
    if python is None:
        parser.error(f"--python {arguments.python} is no program")
    arguments.python = os.path.abspath(python)  # a link stays one: it is how Python finds its environment
    if arguments.url:
        arguments.url = arguments.url.rstrip("/").removesuffix("/v1")
        try:
            arguments.models, arguments.chat_model = models_at(arguments.url)
        except (OSError, ValueError, KeyError, IndexError) as error:
            parser.error(f"no service of this kind answers at {arguments.url}: {one_line(error)}")
    rows = []
    for name, suite in SUITES.items():
        if arguments.only not in (None, name):
            continue
        if reason := why_not(suite, arguments):
            print(f"{suite.NAME}: not run, {reason}")
            continue
        print(f"{suite.NAME}: runs", flush=True)
        started = time.perf_counter()
        results = suite.run(place_of(suite, arguments), arguments.suites, arguments)
        rows.append((suite.NAME, version_of(suite, arguments), results, time.perf_counter() - started))
    if not rows:
        return 2
    print(scorecard(rows))
    return 0 if all(is_good(results) for _, _, results, _ in rows) else 1


if __name__ == "__main__":
    command_line(main)
