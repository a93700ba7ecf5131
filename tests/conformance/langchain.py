"""LangChain's standard tests of a chat model, without tools: its client for OpenAI, pointed at the service."""

import json
import shutil
import tempfile
from pathlib import Path

from tests.conformance import run_pytest, their_environment

NAME = "langchain-tests"
SOURCE = "https://github.com/langchain-ai/langchain"
FOLDER, PACKAGES, NEEDS_URL = None, ("langchain-tests", "langchain-openai"), True
LOOP = [part for kind in ("fixture", "test") for part in ("-o", f"asyncio_default_{kind}_loop_scope=session")]


def run(checkout, suites, arguments):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test_service.py"
        shutil.copy(Path(__file__).with_name("langchain_service.py"), file)
        models = json.dumps([arguments.models[0], arguments.models[-1]])
        env = their_environment(SERVICE_URL=f"{arguments.url}/v1", SERVICE_MODELS=models)
        return run_pytest(folder, ["-o", "asyncio_mode=auto", *LOOP, file.name], arguments.python, env)
