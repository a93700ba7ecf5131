"""llama.cpp's tests of its own server: those of chat completions and of safety.

They are written for one small model and its words ("But she couldn't"), so a test that compares generated text can
only pass there. Those of safety want a server with the key below: start a second one, and say where with --with-key.
"""

from urllib.parse import urlsplit

from tests.conformance import Result, run_pytest, their_environment

NAME = "llama.cpp"
SOURCE = "https://github.com/ggml-org/llama.cpp"
FOLDER, PACKAGES, NEEDS_URL = "llama.cpp", ("pytest", "openai", "requests", "wget", "filelock"), True
KEY = "sk-this-is-the-secret-key"


def add_arguments(parser):
    parser.add_argument("--with-key", metavar="URL", help=f"the same service, started with --api-key {KEY}")


def run(checkout, suites, arguments):
    folder, results = checkout / "tools" / "server" / "tests", []
    for name, url in (("test_chat_completion.py", arguments.url), ("test_security.py", arguments.with_key)):
        if not (folder / "unit" / name).is_file():
            results.append(Result("the checkout", "failed", f"{folder} has no unit/{name}: is it whole?"))
        elif not url:
            results.append(Result(f"unit/{name}", "skipped", f"needs --with-key: a service with --api-key {KEY}"))
        else:
            env = their_environment(DEBUG_EXTERNAL="1", PORT=str(urlsplit(url).port or 80))
            results += run_pytest(folder, [f"unit/{name}"], arguments.python, env)
    return results
