"""Says to LangChain's standard tests what is to be tested, and what the service does not claim to do."""

import json
import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

MODEL, OTHER = json.loads(os.environ["SERVICE_MODELS"])


class TestService(ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {"model": MODEL, "base_url": os.environ["SERVICE_URL"], "api_key": "none", "timeout": 300,
                         "stream_usage": True, "max_retries": 0}  # fmt: skip
    model_override_value = OTHER
    has_tool_calling = False
    has_structured_output = False
