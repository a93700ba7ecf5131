"""llm-comply (Oaklight): six features of chat that every service with OpenAI's interface should have."""

import json
import subprocess
import tempfile

from tests.conformance import SECONDS, Result, one_line, their_environment

NAME = "llm-comply"
SOURCE = "https://github.com/Oaklight/llm-comply"
FOLDER, PACKAGES, NEEDS_URL = None, ("llm-comply",), True
FEATURES = ("chat-basic-response", "chat-streaming-response", "chat-streaming-usage", "chat-system-prompt",
            "chat-multi-turn", "chat-error-handling")  # fmt: skip
START = "from llm_comply.cli import main; raise SystemExit(main())"


def run(checkout, suites, arguments):
    command = [arguments.python, "-c", START, "--format", "openai-chat", "-u", f"{arguments.url}/v1", "-k", "none",
               "-m", arguments.chat_model, "-f", ",".join(FEATURES), "--timeout", "120", "--json"]  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(command, cwd=folder, env=their_environment(), capture_output=True, text=True,
                                  timeout=SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Result("the run", "failed", f"took more than {SECONDS} seconds")]
    try:
        told = {one["id"]: one for one in json.loads(done.stdout)["results"]}
    except (ValueError, KeyError, TypeError):
        return [Result("the run", "failed", one_line(f"ended with {done.returncode}: {done.stdout}{done.stderr}"))]
    return [result(name, told.get(name, {"status": "failed", "errors": ["it was not run"]})) for name in FEATURES]


def result(name, told):
    outcome = told["status"] if told["status"] in ("passed", "skipped") else "failed"
    return Result(name, outcome, "" if outcome == "passed" else one_line(told.get("errors") or told))
