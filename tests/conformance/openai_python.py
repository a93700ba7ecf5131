"""OpenAI's own client for Python: its tests of models, completions and chat completions, with its own code.

They ask for models by OpenAI's names: start the service with `--alias gpt-5.4 --alias gpt-3.5-turbo-instruct`.
"""

from tests.conformance import Result, run_pytest, their_environment

NAME = "openai-python"
SOURCE = "https://github.com/openai/openai-python"
FOLDER, NEEDS_URL = "openai-python", True
PACKAGES = ("openai", "pytest", "pytest-asyncio", "aiohttp", "httpx-aiohttp", "time-machine")  # "openai": what it needs
RUNS = (("list or (retrieve and not path_params)", ["test_models.py"]),  # the others delete, or ask nothing
        ("create", ["test_completions.py", "chat/test_completions.py"]))  # fmt: skip


def run(checkout, suites, arguments):
    folder, results = checkout / "tests" / "api_resources", []
    if lost := [name for _, names in RUNS for name in names if not (folder / name).is_file()]:
        return [Result("the checkout", "failed", f"{checkout} has no {', '.join(lost)}: is it whole?")]
    env = their_environment(PYTHONPATH=str(checkout.resolve() / "src"), TEST_API_BASE_URL=f"{arguments.url}/v1")
    for which, names in RUNS:
        files = [f"tests/api_resources/{name}" for name in names]
        options = ["-o", "addopts=", "-p", "no:inline_snapshot", "-k", which]  # that plugin writes into the checkout
        results += run_pytest(checkout, [*options, *files], arguments.python, env)
    return results
