"""What a judge's `ask` may be: a server of a larger model. Operation, not taught."""

import os

from shared.data.network import Failed, ask_json
from shared.judge import Judge


class JudgeError(OSError):
    """A judge could not be asked. The message names its address and the reason."""


def ollama(model, url, timeout=120):
    """A judge's `ask` that goes to an Ollama server: temperature 0, fixed seed. Raises JudgeError."""
    body = {"model": model, "stream": False, "options": {"temperature": 0, "seed": 0, "num_ctx": 4096}}

    def ask(prompt):
        messages = [{"role": "user", "content": prompt}]
        return _post(f"{url}/api/chat", body | {"messages": messages}, timeout,
                     lambda reply: reply["message"]["content"])  # fmt: skip

    return ask


def openai_compatible(model, url, key=None, timeout=120):
    """The same for any server with OpenAI's chat interface; `url` ends before /chat/completions."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(prompt):
        body = {"model": model, "temperature": 0, "seed": 0, "messages": [{"role": "user", "content": prompt}]}
        return _post(f"{url.rstrip('/')}/chat/completions", body, timeout,
                     lambda reply: reply["choices"][0]["message"]["content"], headers)  # fmt: skip

    return ask


def _post(url, body, timeout, read, headers=None):
    try:
        text = read(ask_json("POST", url, seconds=timeout, json=body, headers=headers)[0])
    except Failed as error:
        raise JudgeError(f"{url}: {error}") from None
    except (KeyError, IndexError, TypeError) as error:
        raise JudgeError(f"{url} gave no answer that can be read ({type(error).__name__}: {error})") from None
    if not isinstance(text, str):
        raise JudgeError(f"{url} gave {type(text).__name__} where text belongs")
    return text


def find_judge(cache=None):
    """The judge that listens here, or None with a line that says so.

    LLM_JUDGE_MODEL names the model, LLM_JUDGE_URL an OpenAI-compatible server (its key in LLM_JUDGE_KEY); without an
    address, Ollama on this machine (OLLAMA_HOST elsewhere), with its first model if none is named. Raises ValueError
    for an LLM_JUDGE_URL without a model's name: a judgement must say whose it is.
    """
    name, url = os.environ.get("LLM_JUDGE_MODEL", "").strip(), os.environ.get("LLM_JUDGE_URL", "").strip()
    if url and not name:
        raise ValueError("LLM_JUDGE_URL is set; LLM_JUDGE_MODEL must name the model that judges there")
    if url:
        return Judge(openai_compatible(name, url, os.environ.get("LLM_JUDGE_KEY", "").strip()), name, cache)
    host = os.environ.get("OLLAMA_HOST", "").strip().rstrip("/") or "localhost"
    host = host.replace("0.0.0.0", "127.0.0.1")  # that is where a server listens, not where one finds it
    port = "" if "://" in host or ":" in host else ":11434"
    url = f"{'' if '://' in host else 'http://'}{host}{port}"
    try:
        models = [entry["name"] for entry in ask_json("GET", f"{url}/api/tags", seconds=2)[0]["models"]]
    except (Failed, KeyError, TypeError):
        models = []
    if not models:
        print("no judge listens here (Ollama, or LLM_JUDGE_URL): a stand-in takes its place")
        return None
    name = name or models[0]
    return Judge(ollama(name, url), name, cache)
