"""A larger language model as the judge of answers, and the servers that it may run on."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from shared.data.network import Failed, ask_json
from shared.files import write_atomically
from shared.generation import generate
from shared.tokenizer import valid_unicode


class JudgeError(OSError):
    """A judge could not be asked. The message names its address and the reason."""


@dataclass(frozen=True)
class Judgement:
    """`score` from 1 to 5, or None where no number could be read from what the judge wrote; and its `reason`."""

    score: int | None
    reason: str


RUBRIC = """You grade the answer of a language model.

Instruction: {instruction}
Input: {input}
Reference answer: {output}
Answer to grade: {answer}

5: correct, complete, does exactly what was asked. 4: correct with a small flaw. 3: partly correct.
2: mostly wrong, or hardly on the topic. 1: wrong, empty or not understandable.
The reference is one good answer, not the only one. Length alone earns nothing.
Reply with JSON only: {{"reason": "<one sentence>", "score": <1 to 5>}}"""

COMPARISON = """You compare two answers of language models to the same instruction.

Instruction: {instruction}
Input: {input}
Reference answer: {output}
Answer A: {a}
Answer B: {b}

Which is better: more correct, more complete, closer to what was asked? Length alone earns nothing.
Reply with JSON only: {{"reason": "<one sentence>", "better": "A" or "B" or "tie"}}"""


class Judge:
    """A language model as a judge of answers (Zheng et al. 2023): a rubric, 1 to 5, and pairs asked in both orders.

    `ask` is a function from a prompt to the model's text, such as `ollama(...)`; `name` says which model that is. With
    `cache` (a folder), each reply is kept on disk under the hash of name and prompt and never asked for again.
    """

    def __init__(self, ask, name, cache=None):
        self.ask, self.name, self.cache = ask, name, None if cache is None else Path(cache)

    def score(self, entry, answer):
        """`Judgement` of the answer to an entry with `instruction`, `input` and the reference `output`."""
        found, text = self._read(_fill(RUBRIC, entry, answer=answer), lambda found: _score(found.get("score")))
        return Judgement(found, text)

    def compare(self, entry, a, b):
        """1.0 where answer a is better, 0.0 where b is, 0.5 for a tie; None where the judge gave no verdict.

        Asked twice, with the places exchanged: a preference that follows the place and not the answer is a tie.
        """
        verdicts = []
        for first, second in ((a, b), (b, a)):
            found, _ = self._read(
                _fill(COMPARISON, entry, a=first, b=second), lambda found: _better(found.get("better"))
            )
            verdicts.append(found)
        if None in verdicts:
            return None
        return verdicts[0] if verdicts[0] == 1 - verdicts[1] else 0.5

    def _read(self, prompt, read):
        """(what `read` makes of the reply, the reason); asks once more where no verdict can be read."""
        for attempt in (prompt, prompt + "\n\nOnly the JSON object, nothing else."):
            reply = self._reply(attempt)
            found = _json_object(reply) or {}
            value = read(found)
            if value is not None:
                return value, valid_unicode(str(found.get("reason", "")))
        return None, reply

    def _reply(self, prompt):
        if self.cache is None:
            return valid_unicode(self.ask(prompt))
        key = hashlib.sha256(f"{self.name}\n{prompt}".encode()).hexdigest()
        file = self.cache / f"{key}.json"
        if file.is_file():
            try:
                kept = json.loads(file.read_text(encoding="utf-8"))
                if isinstance(kept["reply"], str):
                    return kept["reply"]
            except (ValueError, KeyError, TypeError, RecursionError):
                pass  # a damaged file is asked for again
        self.cache.mkdir(parents=True, exist_ok=True)
        reply = valid_unicode(self.ask(prompt))
        with write_atomically(file) as part:
            kept = {"judge": self.name, "prompt": prompt, "reply": reply}
            part.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
        return reply


def _fill(form, entry, **answers):
    values = {"instruction": entry["instruction"], "input": entry.get("input") or "(none)", "output": entry["output"]}
    return valid_unicode(form.format(**values, **answers))


def _json_object(text):
    """The last JSON object in a text that has a verdict in it, as a dict; None where there is none.

    What a reasoning model thinks, from <think> to </think>, does not count.
    """
    verdict, thinking, end = None, False, 0
    for place in re.finditer(r"\{|</?think(?:ing)?>", text):
        if place.start() < end:
            continue  # inside the verdict
        if place[0] != "{":
            verdict, thinking = None, place[0][1] != "/"
            continue
        try:
            found, after = json.JSONDecoder().raw_decode(text, place.start())
        except (ValueError, RecursionError):
            continue
        if "score" in found or "better" in found:
            verdict, end = found, after
    return None if thinking else verdict


def _score(value):
    """A whole number from 1 to 5, from 4, 4.0 or "4"; else None."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number in (1, 2, 3, 4, 5) else None


def _better(value):
    return {"a": 1.0, "b": 0.0, "tie": 0.5}.get(str(value).strip().lower())


def ollama(model, url="http://localhost:11434", timeout=120):
    """A judge's `ask` that goes to an Ollama server: temperature 0, fixed seed. Raises JudgeError."""
    body = {"model": model, "stream": False, "options": {"temperature": 0, "seed": 0, "num_ctx": 4096}}

    def ask(prompt):
        messages = [{"role": "user", "content": prompt}]
        return _post(
            f"{url}/api/chat", body | {"messages": messages}, timeout, lambda reply: reply["message"]["content"]
        )

    return ask


def openai_compatible(model, url, key=None, timeout=120):
    """The same for any server with OpenAI's chat interface; `url` ends before /chat/completions."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def ask(prompt):
        body = {"model": model, "temperature": 0, "seed": 0, "messages": [{"role": "user", "content": prompt}]}
        return _post(f"{url.rstrip('/')}/chat/completions", body, timeout,
                     lambda reply: reply["choices"][0]["message"]["content"], headers)  # fmt: skip

    return ask


def in_process(model, tokenizer, max_new_tokens=80):
    """The same for a GPTModel of this course, greedy. Small ones seldom give a verdict that can be read."""

    def ask(prompt):
        ids = tokenizer.encode_ordinary(prompt)[-max(1, model.config.context_length - max_new_tokens) :]
        new = generate(model, [ids], max_new_tokens, eos_id=tokenizer.eot_token, n_vocab=tokenizer.n_vocab)
        return tokenizer.decode(new[0, len(ids) :].tolist())

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
