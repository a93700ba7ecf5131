"""The shapes of OpenAI's interface, for chat.py: what a request may hold, with bounds, and what an answer looks like.

Unknown fields are ignored, as clients expect. Numbers are numbers (no "5" for 5), and NaN is none; 5.0 is a whole one,
as JSON has but one kind.
"""

import time
import uuid
from html import escape
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MAX_MESSAGES, MAX_TEXT, MAX_CHOICES, MAX_STOPS, MAX_TOP = 1000, 400_000, 8, 16, 20


def whole(value):
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)  # behind the bounds, else the description loses them
Text = Annotated[str, Field(max_length=MAX_TEXT)]
TokenId = Annotated[int, Field(ge=0, lt=2**31), WHOLE]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    model_config = ConfigDict(json_schema_extra={"anyOf": [  # only of the assistant there may be nothing
        {"properties": {"role": {"const": "assistant"}}},
        {"properties": {"content": {"not": {"type": "null"}}}, "required": ["content"]}]})  # fmt: skip

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)] | None = None
    name: Annotated[str, Field(max_length=200)] | None = None

    @model_validator(mode="after")
    def _says_something(self):
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the {self.role} needs its content")
        return self

    def plain(self):
        """(role, text): a developer is the system, parts are joined."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        return "system" if self.role == "developer" else self.role, text


class StreamOptions(Strict):
    include_usage: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text"]  # an answer cannot be forced into JSON here, and a 400 says so


class Request(Strict):
    """What both kinds of request share."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None

    def stops(self):
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Request):
    model_config = ConfigDict(json_schema_extra={"anyOf": [  # top_logprobs needs logprobs
        {"properties": {"top_logprobs": {"enum": [0, None]}}},
        {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]}]})  # fmt: skip

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=2**31), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP), WHOLE] | None = None
    response_format: ResponseFormat | None = None
    prefix_token_ids: Annotated[list[TokenId], Field(max_length=MAX_TEXT)] | None = Field(
        None, description="How the answer begins; what is returned goes on from there. Not part of OpenAI's interface."
    )

    @model_validator(mode="after")
    def _top_needs_logprobs(self):
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def wanted(self):
        """(tokens asked for or None, how many of the most likely tokens to tell, or None for no log-probabilities)."""
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return asked, (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Request):
    prompt: (
        Text
        | Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TEXT)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TEXT)]],
                    Field(min_length=1, max_length=MAX_CHOICES)]
        | None
    ) = None  # fmt: skip
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP), WHOLE] | None = None

    def wanted(self):
        return 16 if self.max_tokens is None else self.max_tokens, self.logprobs


class ClassifyRequest(Strict):
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=64)]


class Vote(Strict):
    """Which of two answers somebody liked better; `left` and `right` are the models that gave them."""

    prompt: Text
    left: Annotated[str, Field(max_length=200)]
    right: Annotated[str, Field(max_length=200)]
    left_answer: Text
    right_answer: Text
    choice: Literal["left", "right", "tie"]
    rater: Annotated[str, Field(max_length=60)] = "me"

    @field_validator("rater")
    @classmethod
    def _one_word(cls, rater):
        return " ".join(rater.replace(",", " ").split()) or "me"


# --- answers


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error: status, and the four fields of OpenAI's error object."""

    def __init__(self, status, message, code=None, param=None, kind="invalid_request_error", headers=None):
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def first_problem(error):
    """(message, param) of the first thing that pydantic found wrong, without what the client sent."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in found["loc"] if isinstance(part, int) or part.isidentifier())[:100]
    return f"{place or 'the body'}: {found['msg'].removeprefix('Value error, ')[:300]}", place or None


def usage_of(prompt_tokens, completion_tokens):
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}  # fmt: skip


class ChatShapes:
    """How an answer of /chat/completions is written; `name_of` gives the bytes of a token."""

    def __init__(self, model, name_of):
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.name_of = name_of

    def logprobs(self, pieces):
        return {"content": [self._entry(piece) for piece in pieces], "refusal": None}

    def _entry(self, piece):
        top = [{"token": raw.decode("utf-8", "replace"), "logprob": x, "bytes": list(raw), "id": i}
               for i, x in piece.top for raw in [self.name_of(i)]]  # fmt: skip
        return {"token": piece.text, "logprob": piece.logprob, "bytes": list(piece.raw), "id": piece.token,
                "top_logprobs": top}  # fmt: skip

    def whole(self, answers, usage):
        """`answers`: (pieces, finish_reason, with_logprobs) of each choice."""
        choices = []
        for i, (pieces, reason, with_logprobs) in enumerate(answers):
            message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None,
                       "annotations": []}  # fmt: skip
            choices.append({"index": i, "message": message, "finish_reason": reason,
                            "logprobs": self.logprobs(pieces) if with_logprobs else None})  # fmt: skip
        return self.head | {"object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(self, choices, **more):
        return self.head | {"object": "chat.completion.chunk", "choices": choices} | more

    def opening(self, i):
        delta = {"role": "assistant", "content": None}
        return [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]

    def delta(self, i, pieces, with_logprobs):
        content = {"content": "".join(piece.text for piece in pieces)}
        logprobs = self.logprobs(pieces) if with_logprobs else None
        return [{"index": i, "delta": content, "logprobs": logprobs, "finish_reason": None}]

    def ending(self, i, reason):
        return [{"index": i, "delta": {}, "logprobs": None, "finish_reason": reason}]


class CompletionShapes(ChatShapes):
    """The same for /completions."""

    def __init__(self, model, name_of):
        super().__init__(model, name_of)
        self.head["id"] = f"cmpl-{uuid.uuid4().hex}"
        self.length = {}  # characters so far, by choice

    def logprobs(self, pieces, start=0):
        offsets = [*accumulate((len(piece.text) for piece in pieces[:-1]), initial=start)] if pieces else []
        top = [{self.name_of(i).decode("utf-8", "replace"): x for i, x in piece.top} for piece in pieces]
        return {"tokens": [piece.text for piece in pieces], "token_logprobs": [piece.logprob for piece in pieces],
                "top_logprobs": top, "text_offset": offsets}  # fmt: skip

    def whole(self, answers, usage):
        choices = [{"index": i, "text": "".join(piece.text for piece in pieces), "finish_reason": reason,
                    "logprobs": self.logprobs(pieces) if with_logprobs else None}
                   for i, (pieces, reason, with_logprobs) in enumerate(answers)]  # fmt: skip
        return self.head | {"object": "text_completion", "choices": choices, "usage": usage}

    def chunk(self, choices, **more):
        return self.head | {"object": "text_completion", "choices": choices} | more

    def opening(self, i):
        return None

    def delta(self, i, pieces, with_logprobs):
        text, start = "".join(piece.text for piece in pieces), self.length.get(i, 0)
        self.length[i] = start + len(text)
        logprobs = self.logprobs(pieces, start) if with_logprobs else None
        return [{"index": i, "text": text, "logprobs": logprobs, "finish_reason": None}]

    def ending(self, i, reason):
        return [{"index": i, "text": "", "logprobs": None, "finish_reason": reason}]


# --- the page at /docs: no library from another host draws it


def docs_page(document):
    """The description of the interface as a page of plain HTML."""

    def rows(shape):
        for name, field in document["components"]["schemas"][shape]["properties"].items():
            if name == "model":  # of which this page names none: it asks for no key
                field = field | {"enum": ["string"]}
            kinds = field.get("anyOf", [field])
            words = ", ".join(dict.fromkeys(filter(None, map(kind_of, kinds))))
            bounds = "; ".join(f"{key} {kind[key]}" for kind in kinds for key in BOUNDS if key in kind)
            yield f"<tr><td><code>{escape(name)}</code></td><td>{escape(words)}</td><td>{escape(bounds)}</td></tr>"

    parts = []
    for path, methods in document["paths"].items():
        for method, what in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(what['summary'])}.</p>")
            if "requestBody" in what:
                shape = what["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                parts.append("<table><tr><th>field</th><th>kind</th><th>bounds</th></tr>" + "".join(rows(shape)))
                parts.append("</table>")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += '<title>Interface</title><link rel="stylesheet" href="chat_page/style.css"><body class="docs"><main>'
    words = 'As data: <a href="openapi.json">openapi.json</a>. The routes below /v1 are there without it too.'
    return f"{head}<h1>Interface</h1><p>{words} <a href='./'>Back to the chat</a></p>{''.join(parts)}</main></html>"


BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems",
          "maxItems")  # fmt: skip


def kind_of(field):
    """One word for what a field may hold; nothing for null."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "enum" in field:
        return " | ".join(field["enum"])
    kind = field.get("type", "")
    return "" if kind == "null" else f"list of {kind_of(field['items'])}" if kind == "array" else kind
