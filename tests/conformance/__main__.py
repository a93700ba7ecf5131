"""Strangers' tests on our code: `python -m tests.conformance --suites DIR [--only NAME]`.

DIR holds the suites' own checkouts, each in a folder of the name that `git clone` gives it. Prints a scorecard: suite,
commit ("+" after it: with changes), how many tests passed, failed and were skipped, and the reason for each that did
not pass. The exit status is 0 where all that could run passed; 1 where a test failed, or a suite had none that passed;
2 where no checkout was found.
"""

import argparse
import time
from pathlib import Path

from shared.files import command_line
from tests.conformance import commit_of, cs336

SUITES = {"cs336": cs336}
OUTCOMES = ("passed", "failed", "skipped")


def scorecard(rows):
    """The rows (suite, commit, results, seconds) as text: a table, and below it what did not pass, and why."""
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'suite':{width}}  {'commit':13}  {'passed':>6}  {'failed':>6}  {'skipped':>7}  {'seconds':>7}"]
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


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__.split("\n")[0])
    parser.add_argument("--suites", type=Path, required=True, metavar="DIR", help="the folder with their checkouts")
    parser.add_argument("--only", choices=SUITES, help="one suite instead of all that are there")
    for suite in SUITES.values():
        getattr(suite, "add_arguments", lambda parser: None)(parser)
    arguments = parser.parse_args(argv)
    if not arguments.suites.is_dir():
        parser.error(f"--suites {arguments.suites} is no folder")
    rows = []
    for name, suite in SUITES.items():
        checkout = arguments.suites / suite.FOLDER
        if arguments.only not in (None, name):
            continue
        if not checkout.is_dir():
            print(f"{suite.NAME}: not run, no folder {checkout}; git clone {suite.SOURCE} {checkout}")
            continue
        started = time.perf_counter()
        results = suite.run(checkout, arguments.suites, arguments)
        rows.append((suite.NAME, commit_of(checkout), results, time.perf_counter() - started))
    if not rows:
        return 2
    print(scorecard(rows))
    return 0 if all(is_good(results) for _, _, results, _ in rows) else 1


if __name__ == "__main__":
    command_line(main)
