"""schemathesis: requests made up from /openapi.json, good ones and bad ones, and what the answers must keep to."""

import tempfile
from pathlib import Path

from tests.conformance import run_command, their_environment

NAME = "schemathesis"
SOURCE = "https://github.com/schemathesis/schemathesis"
FOLDER, PACKAGES, NEEDS_URL = None, ("schemathesis",), True
EXAMPLES, SEED = 30, 1
START = "from schemathesis.cli import schemathesis; schemathesis()"
SETTINGS = """
[checks.negative_data_rejection]  # more than a megabyte is refused with 413, before anybody looks at what it says
expected-statuses = [400, 401, 403, 404, 405, 413, 429, 503]
"""


def run(checkout, suites, arguments):
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder) / "schemathesis.toml", Path(folder) / "report.xml"
        settings.write_text(SETTINGS, encoding="utf-8")
        command = [arguments.python, "-c", START, "--config-file", settings, "run", f"{arguments.url}/openapi.json",
                   "--max-examples", EXAMPLES, "--seed", SEED, "--continue-on-failure", "--no-color",
                   "--generation-database", "none", "--request-timeout", 120,
                   "--report", "junit", "--report-junit-path", report]  # fmt: skip
        return run_command([str(part) for part in command], folder, report, their_environment())
