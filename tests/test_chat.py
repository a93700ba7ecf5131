"""The chat service against real clients: shapes, limits, hostile requests, and an end in good order."""

import asyncio
import concurrent.futures
import contextlib
import csv
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter

import openai
import pytest
import requests
import torch

from shared.checkpoints import COURSE_BASE, load_model, save_model
from shared.conversations import CHATML, COURSE, jinja, render
from shared.generation import generate
from shared.gpt import GPTConfig, GPTModel
from shared.instructions import ALPACA_CHAT_TEMPLATE, format_prompt
from shared.tokenizer import with_end_of_text
from tests.chat_server import ROOT, Scripted, chat, running, stand_in

import chat_api  # isort: skip  # which chat_server put on the path
import chat_text  # isort: skip
from chat_text import TextStream, TooLong, alpaca_tokens, chatml_tokens, fitted_prompt  # isort: skip

MODEL, TOKENIZER = stand_in()
ALPACA_TOKENIZER = with_end_of_text(load_model(COURSE_BASE)[1], COURSE_BASE)
TRICKY = "Grüße 🙂👩‍🚀! <script>alert(1)</script> Stop here? No: 今日は."
HELLO = [{"role": "user", "content": "hello"}]


def scripted(text=TRICKY, pause=0.0, name="scripted", **settings):
    return chat.serve(name, Scripted(TOKENIZER, text, pause), TOKENIZER, **settings)


def served_models():
    torch.manual_seed(0)
    gpt = GPTModel(GPTConfig(ALPACA_TOKENIZER.n_vocab, 256, emb_dim=32, n_heads=2, n_layers=2)).eval()
    return [chat.serve("stand-in", MODEL, TOKENIZER), chat.serve("alpaca", gpt, ALPACA_TOKENIZER),
            scripted()]  # fmt: skip


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    return tmp_path_factory.mktemp("votes") / "new" / "votes.csv"


@pytest.fixture(scope="module")
def url(votes):
    app = chat.create_app(served_models(), aliases={"gpt-5.4": "stand-in"}, votes=votes)
    with running(app) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as made:
        yield made


def ask(url, path="/v1/chat/completions", **body):
    body = {"model": "scripted", "messages": HELLO, "temperature": 0} | body
    return requests.post(f"{url}{path}", json=body, timeout=30)


def events_of(response):
    """What a stream says, as objects, without the last word."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert "Traceback" not in response.text and str(ROOT) not in response.text
    return error


# --- OpenAI's own client


def test_an_answer_has_every_field(client):
    made = client.chat.completions.create(model="scripted", messages=HELLO, temperature=0)
    (choice,) = made.choices
    assert made.id.startswith("chatcmpl-") and made.object == "chat.completion" and made.model == "scripted"
    assert abs(made.created - time.time()) < 60
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content == TRICKY and choice.message.refusal is None and choice.message.annotations == []
    assert "logprobs" in choice.model_fields_set and choice.logprobs is None
    n = len(TOKENIZER.encode_ordinary(TRICKY))
    prompt = len(chatml_tokens(TOKENIZER, [("user", "hello")]))
    assert made.usage.to_dict() == {"prompt_tokens": prompt, "completion_tokens": n, "total_tokens": prompt + n}


def test_a_stream_says_the_same_as_the_whole(client):
    chunks = list(client.chat.completions.create(
        model="scripted", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert parts[0].choices[0].delta.to_dict() == {"role": "assistant", "content": None}
    assert {chunk.id for chunk in chunks} == {chunks[0].id} and {c.object for c in chunks} == {"chat.completion.chunk"}
    assert "".join(part.choices[0].delta.content or "" for part in parts) == TRICKY
    assert all("\ufffd" not in (part.choices[0].delta.content or "") for part in parts), "a character was cut in two"
    assert all(part.choices[0].delta.role is None for part in parts[1:])
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert parts[-1].choices[0].delta.to_dict() == {}
    assert last.choices == [] and last.usage.completion_tokens == len(TOKENIZER.encode_ordinary(TRICKY))
    assert len(parts) > 10, "it did not come in pieces"


@pytest.mark.parametrize("name", ["stand-in", "alpaca"])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.3, "seed": -(2**63), "top_p": 0.9}])
def test_streamed_equals_not_streamed_for_real_models(client, name, settings):
    settings = settings | {"model": name, "messages": HELLO, "max_tokens": 25}
    whole = client.chat.completions.create(**settings)
    chunks = [*client.chat.completions.create(**settings, stream=True)]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content != ""
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_greedy_is_generate(client):
    made = client.chat.completions.create(model="stand-in", messages=HELLO, temperature=0, max_tokens=20)
    prompt = chatml_tokens(TOKENIZER, [("user", "hello")])
    new = generate(MODEL, [prompt], 20, eos_id=2, n_vocab=TOKENIZER.n_vocab)[0, len(prompt) :].tolist()
    assert made.choices[0].message.content == TOKENIZER.decode([i for i in new if i > 2])


def test_seeds_and_n(client):
    def texts(seed, n=2):
        made = client.chat.completions.create(model="stand-in", messages=HELLO, temperature=1.2, seed=seed, n=n,
                                              max_tokens=12)  # fmt: skip
        assert [choice.index for choice in made.choices] == list(range(n))
        assert made.usage.completion_tokens <= 12 * n
        return [choice.message.content for choice in made.choices]

    assert texts(7) == texts(7) == [*texts(7, 1), *texts(8, 1)]
    assert texts(7)[0] != texts(7)[1] and texts(2**63 - 1)
    made = client.chat.completions.create(model="stand-in", messages=HELLO, n=3, max_tokens=4,
                                          extra_body={"ignore_eos": True})  # fmt: skip
    assert made.usage.completion_tokens == 12 and {choice.finish_reason for choice in made.choices} == {"length"}
    streamed = client.chat.completions.create(model="stand-in", messages=HELLO, n=3, max_tokens=4, stream=True)
    assert {chunk.choices[0].index for chunk in streamed} == {0, 1, 2}


def test_logprobs_tell_every_token(client):
    settings = dict(model="scripted", messages=HELLO, temperature=0, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**settings)
    content = whole.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == TRICKY
    assert b"".join(bytes(entry.bytes) for entry in content) == TRICKY.encode()
    expected = 10 - math.log(math.exp(10) + math.exp(9) + TOKENIZER.n_vocab - 2)
    for entry in content:
        assert len(entry.top_logprobs) == 3 and bytes(entry.top_logprobs[0].bytes) == bytes(entry.bytes)
        assert entry.logprob <= 0
    assert content[0].logprob == pytest.approx(expected, abs=1e-4)
    streamed = []
    for chunk in client.chat.completions.create(**settings, stream=True):
        if chunk.choices[0].delta.content is not None:
            assert chunk.choices[0].delta.content == "".join(e.token for e in chunk.choices[0].logprobs.content)
            streamed += chunk.choices[0].logprobs.content
    assert [entry.to_dict() for entry in streamed] == [entry.to_dict() for entry in content]


@pytest.mark.parametrize("stop", ["Stop here", ["nothing", "<script>", "No:"], "🙂", "e 🙂", "G"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_and_all_after_it_is_cut_off(client, stop, stream):
    made = client.chat.completions.create(model="scripted", messages=HELLO, stop=stop, stream=stream, temperature=0,
                                          logprobs=True)  # fmt: skip
    if stream:
        parts = [chunk.choices[0] for chunk in made]
        text, reason = "".join(part.delta.content or "" for part in parts), parts[-1].finish_reason
        tokens = [entry.token for part in parts if part.logprobs for entry in part.logprobs.content]
    else:
        text, reason = made.choices[0].message.content, made.choices[0].finish_reason
        tokens = [entry.token for entry in made.choices[0].logprobs.content]
    found = [TRICKY.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in TRICKY]
    assert (text, reason) == (TRICKY[: min(found)], "stop") and "".join(tokens) == text


def test_an_answer_goes_on_from_tokens_that_were_chosen(client):
    settings = dict(model="stand-in", messages=HELLO, temperature=0, max_tokens=16, logprobs=True, top_logprobs=2)
    content = client.chat.completions.create(**settings).choices[0].logprobs.content
    ids = [entry.id for entry in content]
    rest = client.chat.completions.create(**settings | {"max_tokens": 11}, extra_body={"prefix_token_ids": ids[:5]})
    assert [entry.id for entry in rest.choices[0].logprobs.content] == ids[5:]
    other = content[5].top_logprobs[1].id
    made = client.chat.completions.create(**settings, extra_body={"prefix_token_ids": [*ids[:5], other]})
    prompt = chatml_tokens(TOKENIZER, [("user", "hello")]) + ids[:5] + [other]
    alone = generate(MODEL, [prompt], 16, eos_id=2)[0, len(prompt) :].tolist()
    assert [entry.id for entry in made.choices[0].logprobs.content] == [i for i in alone if i != 2]


def test_completions(client):
    made = client.completions.create(model="stand-in", prompt="The sea", max_tokens=4, temperature=0, logprobs=2)
    (choice,) = made.choices
    ids = TOKENIZER.encode_ordinary("The sea")
    new = generate(MODEL, [ids], 4)[0, len(ids) :].tolist()
    assert made.object == "text_completion" and choice.text == TOKENIZER.decode(new)
    assert "".join(choice.logprobs.tokens) == choice.text and len(choice.logprobs.top_logprobs[0]) == 2
    assert [choice.text[i:] for i in choice.logprobs.text_offset][0] == choice.text
    chunks = [*client.completions.create(model="stand-in", prompt="The sea", max_tokens=4, temperature=0, stream=True,
                                         logprobs=2, stream_options={"include_usage": True})]  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == choice.text
    offsets = [i for chunk in chunks[:-2] for i in chunk.choices[0].logprobs.text_offset]
    assert offsets == choice.logprobs.text_offset and chunks[-1].usage.completion_tokens == 4
    several = client.completions.create(model="stand-in", prompt=["The sea", "A cat"], n=2, max_tokens=3, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    by_ids = client.completions.create(model="stand-in", prompt=ids, max_tokens=4, temperature=0)
    assert by_ids.choices[0].text == choice.text
    assert client.completions.create(model="stand-in", prompt="").choices[0].text


def test_models(client):
    listed = client.models.list().data
    assert [model.id for model in listed] == ["stand-in", "alpaca", "scripted"]
    assert all(model.object == "model" and model.owned_by and model.created for model in listed)
    assert client.models.retrieve("alpaca").id == "alpaca" and client.models.retrieve("gpt-5.4").id == "gpt-5.4"
    with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
        client.models.retrieve("nobody")


def test_what_other_clients_send_besides_is_accepted(client):
    made = client.chat.completions.create(
        model="gpt-5.4", max_completion_tokens=3, store=True, metadata={"a": "b"}, service_tier="auto", user="me",
        logit_bias={"5": 1}, parallel_tool_calls=True, tool_choice="none", response_format={"type": "text"},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}], presence_penalty=-2,
        frequency_penalty=2, top_logprobs=0, logprobs=True, stream=False, modalities=["text"], seed=-9007199254740991,
        messages=[{"role": "developer", "content": "Be kind.", "name": "x"}, {"role": "system", "content": "Short."},
                  {"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "llo"}]},
                  {"role": "user", "content": "are you there?"}, {"role": "assistant", "content": None},
                  {"role": "user", "content": ""}])  # fmt: skip
    assert made.usage.completion_tokens <= 3
    for name in ("max_tokens", "max_completion_tokens"):
        made = client.chat.completions.create(model="stand-in", messages=HELLO, **{name: 0})
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("", "length")
    assert client.completions.create(model="stand-in", prompt="x", suffix="y", echo=True, best_of=1, max_tokens=1)


def test_curl_with_and_without_v1(url):
    body = json.dumps({"model": "scripted", "messages": HELLO, "temperature": 0})
    for path in ("/v1/chat/completions", "/chat/completions"):
        said = subprocess.run(["curl", "-s", "--noproxy", "*", f"{url}{path}", "-d", body], capture_output=True,
                              check=True, timeout=30)  # fmt: skip
        assert json.loads(said.stdout)["choices"][0]["message"]["content"] == TRICKY
    for path in ("/models", "/v1/models/alpaca", "/models/alpaca", "/health", "/metrics", "/openapi.json", "/docs"):
        assert requests.get(f"{url}{path}", timeout=10).status_code == 200, path
    assert ask(url, "/completions", prompt="x", max_tokens=1).status_code == 200


def test_the_command_llm_unchanged(url, tmp_path):
    pytest.importorskip("llm", reason="not installed: tests/requirements.txt has it")
    models = [{"model_id": "here", "model_name": "scripted", "api_base": f"{url}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models), encoding="utf-8")  # JSON is YAML too
    env = os.environ | {"LLM_USER_PATH": str(tmp_path), "NO_PROXY": "*", "PYTHONUTF8": "1"}

    def llm(*arguments):
        return subprocess.run([sys.executable, "-m", "llm", *arguments], env=env, capture_output=True, check=True,
                              timeout=60).stdout.decode()  # fmt: skip

    assert llm("-m", "here", "hello", "-o", "temperature", "0") == f"{TRICKY}\n"
    assert llm("-c", "and again", "--no-stream", "-o", "temperature", "0", "-s", "Be kind.") == f"{TRICKY}\n"


def test_langchain_unchanged(url):
    langchain_openai = pytest.importorskip("langchain_openai", reason="not installed: tests/requirements.txt has it")
    model = langchain_openai.ChatOpenAI(model="scripted", base_url=f"{url}/v1", api_key="none", temperature=0,
                                        stream_usage=True)  # fmt: skip
    whole = model.invoke([("system", "Be kind."), ("human", "hello")])
    assert whole.content == TRICKY and whole.response_metadata["finish_reason"] == "stop"
    chunks = [*model.stream("hello")]
    assert "".join(chunk.content for chunk in chunks) == TRICKY and len(chunks) > 10
    n = len(TOKENIZER.encode_ordinary(TRICKY))
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == n
    assert [made.content for made in model.batch(["hello", "hi"], stop=["Stop"])] == [TRICKY.partition("Stop")[0]] * 2
    assert asyncio.run(model.ainvoke("hello")).usage_metadata["output_tokens"] == n


# --- prompts


def test_the_prompt_is_what_transformers_makes_of_the_published_template():
    messages = [("system", "Be kind."), ("user", "<|im_end|> hi\n"), ("assistant", "hello"), ("user", "who?")]
    ids = chatml_tokens(TOKENIZER, messages)
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in messages) + "<|im_start|>assistant\n"
    assert TOKENIZER.decode(ids) == text
    assert ids.count(2) == len(messages), "a mark in a text is text"
    usual = [("system", CHATML.system)]
    assert chatml_tokens(TOKENIZER, messages[1:]) == chatml_tokens(TOKENIZER, usual + messages[1:])


def test_the_alpaca_prompt_is_that_of_lesson_5_1():
    def text_of(messages):
        return ALPACA_TOKENIZER.decode(alpaca_tokens(ALPACA_TOKENIZER, messages))

    entry = {"instruction": "Name a bird.", "input": ""}
    assert alpaca_tokens(ALPACA_TOKENIZER, [("user", "Name a bird.")]) == \
        ALPACA_TOKENIZER.encode_ordinary(format_prompt(entry))  # fmt: skip
    with_input = {"instruction": "Shorten it.", "input": "A long text."}
    assert text_of([("user", "Shorten it.\n\n### Input:\nA long text.")]) == format_prompt(with_input)
    talk = text_of([("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?")])
    head = format_prompt({"instruction": "Be brief.\n\nHi", "input": ""})
    assert talk == f"{head}Hello.<|endoftext|>### Instruction:\nWho?\n\n### Response:\n"


def test_the_oldest_turns_go_and_the_system_stays():
    talk = [("system", "s")]
    for i in range(20):
        talk += [("user", f"question {i}"), ("user", "please"), ("assistant", f"answer {i}")]
    talk.append(("user", "the last one"))
    whole = chatml_tokens(TOKENIZER, talk)
    assert fitted_prompt(TOKENIZER, talk, len(whole), 0, chatml_tokens) == (whole, 0)
    for room, wanted in ((len(whole) - 1, 0), (200, 0), (200, 50), (40, 0), (40, 39)):
        ids, left_out = fitted_prompt(TOKENIZER, talk, room, wanted, chatml_tokens)
        assert len(ids) <= room and left_out % 3 == 0 and left_out > 0
        assert ids == chatml_tokens(TOKENIZER, talk[:1] + talk[1 + left_out :])
        fits_more = len(chatml_tokens(TOKENIZER, talk[:1] + talk[1 + left_out - 3 :])) <= room - wanted
        assert not fits_more, "more was left out than need be"
    with pytest.raises(TooLong, match=r"have \d+ tokens; there is room for 10"):
        fitted_prompt(TOKENIZER, talk, 10, 0, chatml_tokens)


def test_the_answer_says_what_was_left_out(url):
    talk = [{"role": role, "content": "one two three four five"} for role in ("user", "assistant") * 60] + HELLO
    whole = ask(url, messages=talk)
    (note,) = whole.json()["notes"]
    assert "oldest" in note and "messages were left out" in note and whole.json()["usage"]["total_tokens"] <= 512
    first, *others = events_of(ask(url, messages=talk, stream=True))
    assert first["notes"] == [note] and not any("notes" in event for event in others)
    assert "notes" not in ask(url).json()
    for stream in (False, True):
        too_long = [{"role": "system", "content": "one two " * 2000}, *HELLO]
        assert error_of(ask(url, messages=too_long, stream=stream), 400)["code"] == "context_length_exceeded"
    long = ask(url, "/v1/completions", prompt="one two " * 2000)
    assert error_of(long, 400)["code"] == "context_length_exceeded"


def test_the_row_ends_an_answer_that_would_be_longer_than_the_context(url):
    talk = [{"role": "user", "content": "one two three " * 55}]
    made = ask(url, model="stand-in", messages=talk, ignore_eos=True, max_tokens=2**31 - 1).json()
    assert made["usage"]["total_tokens"] == 513 and made["choices"][0]["finish_reason"] == "length"


# --- text as it comes


def pieces_of(text, stops=()):
    stream, out = TextStream(TOKENIZER, stops), []
    for token in TOKENIZER.encode_ordinary(text):
        out.append("".join(piece.text for piece in stream.feed(token)))
        if stream.stopped:
            return out
    return [*out, "".join(piece.text for piece in stream.finish())]


def test_bytes_wait_for_their_character_and_words_for_their_stop():
    parts = pieces_of(TRICKY)
    assert "".join(parts) == TRICKY and not any("\ufffd" in part for part in parts)
    for stop in ("</script>", "??", "🙂", "aaa", "."):
        parts = pieces_of(TRICKY + " aabaaa.", [stop])
        text = TRICKY + " aabaaa."
        assert "".join(parts) == text.partition(stop)[0]
        for i in range(len(parts)):
            assert text.partition(stop)[0].startswith("".join(parts[:i])), "something was shown that had to be cut off"


def test_an_end_in_the_middle_of_a_character_shows_that_something_is_missing():
    ids = TOKENIZER.encode_ordinary("🙂")
    assert len(ids) > 1
    stream = TextStream(TOKENIZER)
    assert stream.feed(ids[0]) == []
    (piece,) = stream.finish()
    assert piece.text == "\ufffd" and piece.raw == "🙂".encode()[: len(piece.raw)]


# --- errors


@pytest.mark.parametrize(("body", "param"), [
    ({"model": None}, "model"), ({"messages": None}, "messages"), ({"messages": "hi"}, "messages"),
    ({"messages": [123]}, "messages.0"), ({"messages": HELLO * 1001}, "messages"),
    ({"messages": [{}]}, "messages.0.role"), ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": 123}]}, "messages.0.content"),
    ({"messages": [{"role": "user"}]}, "messages.0"),
    ({"messages": [{"role": "king", "content": ""}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"response_format": {"type": "sound"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}}, "response_format.type"),
    ({"temperature": -0.1}, "temperature"), ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"), ({"top_p": 1.5}, "top_p"), ({"top_k": 0.5}, "top_k"),
    ({"min_p": -1}, "min_p"), ({"repetition_penalty": 0}, "repetition_penalty"), ({"n": 0}, "n"), ({"n": 9}, "n"),
    ({"presence_penalty": 2.5}, "presence_penalty"), ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 2**31}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 1e300}, "max_tokens"), ({"n": "1.0"}, "n"), ({"n": True}, "n"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"), ({"seed": 2**63}, "seed"), ({"seed": 10**400}, "seed"),
    ({"stop": ""}, "stop"), ({"stop": ["x"] * 17}, "stop"), ({"stop": [1]}, "stop"), ({"stream": "yes"}, "stream"),
    ({"top_logprobs": 2}, None), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"), ({"stream_options": 5}, "stream_options"), ({"model": "x" * 201}, "model"),
    ({"prefix_token_ids": [5000]}, "prefix_token_ids"), ({"prefix_token_ids": [-1]}, "prefix_token_ids.0"),
])  # fmt: skip
def test_bad_fields_are_named(url, body, param):
    error = error_of(ask(url, **body), 400)
    assert error["type"] == "invalid_request_error" and (error["param"] or "").startswith(param or "")
    assert len(error["message"]) < 500


@pytest.mark.parametrize("body", [{"max_tokens": 3.0, "n": 2.0, "seed": -1e3, "top_k": 4e1},
                                  {"max_completion_tokens": 3.0, "logprobs": True, "top_logprobs": 2.0}])  # fmt: skip
def test_a_whole_number_may_be_written_with_a_point(url, body):
    made = ask(url, model="stand-in", ignore_eos=True, **body).json()
    assert made["usage"]["completion_tokens"] == 3 * len(made["choices"]) == 3 * body.get("n", 1)


def test_unknown_models_and_routes(url):
    error = error_of(ask(url, model="nobody"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model") and "'nobody'" in error["message"]
    error_of(requests.get(f"{url}/v1/nothing", timeout=10), 404)
    error_of(requests.get(f"{url}/chat_page/../chat.py", timeout=10), 404)
    error_of(requests.get(f"{url}/chat_page/..%2fchat.py", timeout=10), 404)
    wrong = requests.get(f"{url}/v1/chat/completions", timeout=10)
    error_of(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    error_of(requests.post(f"{url}/v1/classify", json={"input": "x"}, timeout=10), 404)


def test_the_description_names_every_error_and_every_bound(url):
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    post = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "413", "429", "503"} <= set(post["responses"])
    shape = document["components"]["schemas"]["ChatRequest"]
    assert shape["required"] == ["model", "messages"]
    assert shape["properties"]["model"]["enum"] == ["stand-in", "alpaca", "scripted", "gpt-5.4"]
    (name,) = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
    assert name["schema"]["enum"] == shape["properties"]["model"]["enum"]
    bounds = next(kind for kind in shape["properties"]["temperature"]["anyOf"] if kind["type"] == "number")
    assert (bounds["minimum"], bounds["maximum"]) == (0, 2)
    for field, least, most in (("n", 1, 8), ("top_logprobs", 0, 20)):
        bounds = next(kind for kind in shape["properties"][field]["anyOf"] if kind["type"] == "integer")
        assert (bounds["minimum"], bounds["maximum"]) == (least, most), field
    told = post["responses"]["200"]["content"]
    assert {*told} == {"application/json", "text/event-stream"}
    assert told["text/event-stream"]["schema"]["required"] == ["data"], "an event is an object with its data"
    page = requests.get(f"{url}/docs", timeout=10).text
    assert "POST /v1/chat/completions" in page and "frequency_penalty" in page and "http" not in page.lower()


# --- who may ask


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 200), ({"Host": "evil.example"}, 403), ({"Host": "evil.example:8000"}, 403), ({"Host": ""}, 403),
    ({"Host": "localhost"}, 200), ({"Host": "LocalHost:81"}, 200), ({"Host": "[::1]:9"}, 200),
    ({"Host": "127.0.0.1.evil.example"}, 403), ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:1", "Host": "localhost:2"}, 403), ({"Origin": "http://[bad"}, 403),
    ({"Origin": "http://localhost:8000", "Host": "localhost:8000"}, 200),
])  # fmt: skip
def test_host_and_origin(url, headers, status):
    got = requests.get(f"{url}/v1/models", headers=headers, timeout=10)
    assert got.status_code == status
    assert "access-control-allow-origin" not in got.headers
    if status == 403:
        error_of(got, 403)


def test_a_key_is_asked_for():
    app = chat.create_app([scripted(name="anna-2")], api_key="geheim-é", aliases={"gpt-5.4": "anna-2"})
    with running(app) as address:
        for path in ("/", "/health", "/docs", *(f"/chat_page/{name}" for name in chat.PAGE if name != "index.html")):
            open_to_all = requests.get(f"{address}{path}", headers={"Host": "any.name"}, timeout=10)
            assert open_to_all.status_code == 200, path
            assert "anna-2" not in open_to_all.text and "gpt-5.4" not in open_to_all.text, f"{path} names a model"
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing", "//", "/chat_pag"):
            for given in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "geheim-é".encode()}):
                assert requests.get(f"{address}{path}", headers=given, timeout=10).status_code == 401, path
        error = error_of(ask(address), 401)
        assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
        key = {"Authorization": "Bearer geheim-é".encode()}
        assert requests.get(f"{address}/v1/models", headers=key, timeout=10).status_code == 200


@pytest.mark.parametrize("where", ["here", "a notebook in Colab", "a command in Colab"])
def test_no_other_site_frames_the_page_but_a_cell_in_colab_does(where, monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    if where == "a notebook in Colab":
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    elif where == "a command in Colab":
        monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    with running(chat.create_app([scripted()])) as address:
        told = requests.get(address, timeout=10).headers["content-security-policy"]
    colab = ["https://colab.research.google.com", "https://*.googleusercontent.com"]
    assert told.partition("frame-ancestors ")[2].split() == ["'self'", *(colab if "Colab" in where else [])]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines ask: choose a key for them with --api-key"),
    (["--rows", "0"], "--rows is 0; it must be at least 1"), (["--seconds", "nan"], "it must be above 0"),
    (["--queue", "0"], "--queue is 0"), (["--dtype", "int4"], "invalid choice"), (["--port", "-1"], "--port is -1"),
    (["--port", "65536"], "--port is 65536; it must be at most 65535"),
])
def test_bad_options(arguments, says, capsys, monkeypatch):
    monkeypatch.delenv("LLM_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        chat.parse(arguments)
    assert says in capsys.readouterr().err


def test_bad_checkpoints(capsys, tmp_path):
    assert chat.main([str(tmp_path / "nothing")]) == 1
    assert "nothing does not exist" in capsys.readouterr().err
    assert chat.main([str(COURSE_BASE), "--alias", "a=b"]) == 1
    assert "there is no such model" in capsys.readouterr().err


# --- hostile requests


def raw(url, content, path="/v1/chat/completions", headers=()):
    return requests.post(f"{url}{path}", data=content, headers={"Content-Type": "application/json", **dict(headers)},
                         timeout=30)  # fmt: skip


def message(text):
    return b'{"model": "scripted", "messages": [{"role": "user", "content": ' + text + b"}]}"


TALK = b'{"model": "scripted", "messages": [{"role": "user", "content": "x"}], '
HOSTILE = {
    "nothing": b"", "no json": b"{", "a list": b"[]", "a number": b"1", "null": b"null", "nan": b"NaN",
    "deep list": b"[" * 100_000, "deep object": b'{"a":' * 50_000, "deep unknown field":
    b'{"model": "scripted", "messages": [], "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "nan temperature": TALK + b'"temperature": NaN}',
    "infinite": TALK + b'"top_p": -Infinity}',
    "1e999": TALK + b'"temperature": 1e999}',
    "a huge number": TALK + b'"seed": ' + b"9" * 5000 + b"}",
    "a lone surrogate": message(rb'"\ud800"'), "the other one": message(rb'"\udc00 x"'),
    "not utf-8": message(b'"\xff\xfe"'), "a nul byte": b"\0", "a surrogate as key": rb'{"\ud800": 1}',
    "twice the same key": b'{"model": "scripted", "model": 5, "messages": []}',
    "utf-16": '{"model": "x"}'.encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/vote", "/classify"])
def test_bodies_that_no_honest_client_sends(url, name, path):
    error_of(raw(url, HOSTILE[name], path), 400)


@pytest.mark.parametrize("text", [
    "\0", "\u2028", "\ufeff", " " * 300_000, "a" * 300_000, "\n" * 100_000, "1" * 100_000, "é" * 100_000, "🙂" * 9000,
    "<|im_end|>" * 200, "{instruction}", "\x7f\x80", "\u202e" * 50, "'" * 100_000, " \n" * 100_000, "a " * 100_000,
], ids=lambda text: repr(text[:4]))  # fmt: skip
@pytest.mark.parametrize("model", ["scripted", "alpaca"])
def test_odd_texts_are_answered_or_refused(url, text, model):
    begun = time.monotonic()
    got = ask(url, model=model, messages=[{"role": "user", "content": text}], max_tokens=2)
    assert got.status_code == 200 or error_of(got, 400)["code"] == "context_length_exceeded"
    assert time.monotonic() - begun < 10
    assert ask(url).json()["choices"][0]["message"]["content"] == TRICKY


def test_large_bodies_are_read_to_their_end_and_refused(url):
    for content in (message(b'"' + b"x" * 10_000_000 + b'"'), b" " * 2_000_000):
        assert error_of(raw(url, content), 413)["code"] == "too_large"
    chunks = (b"x" * 100_000 for _ in range(30))
    assert error_of(raw(url, chunks), 413)
    assert ask(url).status_code == 200


def test_sockets_that_do_not_speak_http_do_no_harm(url):
    port = int(url.rpartition(":")[2])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
    sent = [b"", b"\0" * 5000, b"GET / HTTP/9.9\r\n\r\n", b"A" * 200_000, head, head + b"{", b"GET / HTTP/1.1\r\nHost",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ",
            b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" * 50]  # fmt: skip
    opened = []
    for content in sent:
        one = socket.create_connection(("127.0.0.1", port), 5)
        with contextlib.suppress(OSError):
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)
        opened.append(one)
    assert ask(url).status_code == 200
    for one in opened:
        one.settimeout(5)
        with contextlib.suppress(OSError):
            said = one.recv(2000)
            assert not said.startswith(b"HTTP/1.1 5"), said
        one.close()
    assert ask(url).status_code == 200


def test_a_slow_body_is_not_waited_for_forever(url, monkeypatch):
    monkeypatch.setattr("chat_guard.BODY_SECONDS", 0.2)
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 5) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
        one.settimeout(5)
        assert one.recv(2000).startswith(b"HTTP/1.1 408 ")


NUMBERS = (b"0", b"-0.0", b"-1", b"1e308", b"-1e308", b"1e-400", b"1e400", b"NaN", b"-Infinity", b"9" * 400, b"5.5",
           b"9223372036854775808", b"2147483648", b"true", b'"1"', b"[]", b"{}", b"null")  # fmt: skip
FIELDS = (b"temperature", b"top_p", b"top_k", b"min_p", b"max_tokens", b"max_completion_tokens", b"seed", b"n", b"stop",
          b"stream", b"logprobs", b"top_logprobs", b"presence_penalty", b"frequency_penalty", b"repetition_penalty",
          b"prefix_token_ids", b"stream_options", b"messages", b"model", b"prompt", b"input")  # fmt: skip
PATHS = ("/v1/chat/completions",) * 5 + ("/v1/completions", "/v1/classify", "/vote", "/v1/models/%ff%00", "/%2e%2e/")


def hostile_body(rng):
    """A body by which somebody might try to break the service."""
    honest = message(b'"hello"')[:-1] + b', "max_tokens": 2}'
    match rng.randrange(7):
        case 0:
            return rng.choice([*HOSTILE.values()])
        case 1:
            fields = [b'"%b": %b' % (rng.choice(FIELDS), rng.choice(NUMBERS)) for _ in range(rng.randint(1, 3))]
            return honest[:-1] + b", " + b", ".join(fields) + b"}"
        case 2:
            return honest[: rng.randrange(len(honest))]
        case 3:
            broken = bytearray(honest)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            return bytes(broken)
        case 4:
            return message(b'"%b"' % b"".join(rb"\u%04x" % rng.randrange(0x10000) for _ in range(rng.randint(1, 50))))
        case 5:
            mark, depth = rng.choice([b"[", b'{"a":']), rng.choice([10, 1000, 100_000])
            return rng.choice([b"", honest[:-1] + b', "messages": ', honest[:-1] + b', "x": ']) + mark * depth
        case _:
            return rng.randbytes(rng.choice([1, 100, 10_000]))


def be_rude(port, rng):
    """Half-closed, cut off, or read slowly: a client that does not keep to the order of a conversation."""
    body = message(b'"hello"')[:-1] + b', "stream": true, "n": 4, "logprobs": true, "top_logprobs": 20}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.suppress(OSError), socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.settimeout(0.3)
        one.connect(("127.0.0.1", port))
        one.sendall((head + body)[: rng.choice([0, 10, len(head), len(head) + 20, 10_000])])
        if rng.random() < 0.5:
            one.shutdown(socket.SHUT_WR)
        for _ in range(rng.randrange(3)):
            time.sleep(0.05)
            if not one.recv(100):
                break


def test_a_thousand_hostile_requests_in_one_run(capfd):
    served, rng = scripted(), random.Random(1)
    plan = ["body"] * 880 + ["rude"] * 110 + ["large"] * 10
    rng.shuffle(plan)
    with running(chat.create_app([served])) as address:
        port = int(address.rpartition(":")[2])

        def send(job):
            i, kind = job
            rng = random.Random(i)
            if kind == "rude":
                return be_rude(port, rng)
            content = hostile_body(rng) if kind == "body" else message(b'"' + b"x" * 10_000_000 + b'"')
            return raw(address, content, rng.choice(PATHS)).status_code

        begun, statuses = time.monotonic(), []
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for start in range(0, len(plan), 100):
                statuses += pool.map(send, enumerate(plan[start : start + 100], start))
                assert ask(address).json()["choices"][0]["message"]["content"] == TRICKY
        told = Counter(status for status in statuses if status is not None)
        assert len(statuses) == 1000 and max(told) < 500, told
        assert told[200] > 20 and told[400] > 400 and told[413] and told[404] and told[405], told
        wait_until(lambda: not served.scheduler.running and not served.scheduler.waiting, 30)
        assert ask(address).status_code == 200 and time.monotonic() - begun < 120
    assert "Traceback" not in capfd.readouterr().err, "something went wrong behind the answers"


# --- load, and an end in good order


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def slow_server(pause=0.02, text="word " * 400, **settings):
    served = scripted(text, pause, **settings)
    with running(chat.create_app([served])) as address:
        yield address, served.scheduler


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_row(stream):
    with slow_server(rows=1) as (address, scheduler):
        port = int(address.rpartition(":")[2])
        body = json.dumps({"model": "scripted", "messages": HELLO, "stream": stream, "max_tokens": 400}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        runs, waits = (socket.create_connection(("127.0.0.1", port), 5) for _ in range(2))
        runs.sendall(head.encode() + body)
        wait_until(lambda: scheduler.running and len(scheduler.running[0].new) > 1)
        waits.sendall(head.encode() + body)
        wait_until(lambda: scheduler.waiting)
        waits.close()
        wait_until(lambda: not scheduler.waiting)
        runs.close()
        wait_until(lambda: not scheduler.running)
        assert scheduler.n_tokens < 200
        assert ask(address, max_tokens=2).status_code == 200


def test_a_full_queue_says_429_and_when_to_come_again():
    with slow_server(pause=0.1, rows=1, queue=2) as (address, scheduler):
        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            asked = [pool.submit(ask, address, max_tokens=8) for _ in range(9)]
            got = [one.result() for one in asked]
        busy = [one for one in got if one.status_code == 429]
        assert len(busy) >= 5 and sum(one.status_code == 200 for one in got) == 9 - len(busy) >= 3
        assert error_of(busy[0], 429)["code"] == "busy" and int(busy[0].headers["retry-after"]) >= 1
        counters = requests.get(f"{address}/metrics", timeout=10).text
        assert f'chat_errors_total{{status="429"}} {len(busy)}.0' in counters
        assert ask(address, n=4).status_code == 429, "four rows at once have never room here"


def test_while_one_answer_grows_the_server_answers_others_at_once():
    with slow_server(pause=0.05) as (address, scheduler):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, address, max_tokens=20) for _ in range(8)]
            wait_until(lambda: len(scheduler.running) == 8)
            begun = time.monotonic()
            assert requests.get(f"{address}/health", timeout=10).status_code == 200
            assert time.monotonic() - begun < 1
            assert len({one.result().json()["choices"][0]["message"]["content"] for one in asked}) == 1
        assert scheduler.n_steps < 8 * 20, "the answers did not grow together"


def test_a_deadline_cuts_the_answer_and_refuses_who_waited_in_vain():
    served = scripted("word " * 400, 0.05, rows=1)
    with running(chat.create_app([served], seconds=1.6)) as address:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            runs = pool.submit(ask, address, max_tokens=400)
            wait_until(lambda: served.scheduler.running)
            time.sleep(0.8)
            streamed = pool.submit(ask, address, max_tokens=400, stream=True)
            cut = runs.result().json()
        assert cut["choices"][0]["finish_reason"] == "length" and 0 < cut["usage"]["completion_tokens"] < 50
        assert "time for a request was over" in cut["notes"][0]
        *_, last = events_of(streamed.result())
        assert last["choices"][0]["finish_reason"] == "length" and last["notes"] == cut["notes"]


def test_a_model_that_fails_is_an_error_and_the_next_request_is_served(url, monkeypatch, caplog):
    with slow_server(pause=0.0) as (address, scheduler):
        with monkeypatch.context() as patch:
            patch.setattr(scheduler.model, "hidden", lambda *_: 1 / 0)
            error = error_of(ask(address), 500)
        assert error["type"] == "server_error" and "ZeroDivision" not in error["message"]
        with monkeypatch.context() as patch:
            good, calls = scheduler.model.hidden, itertools.count()
            patch.setattr(scheduler.model, "hidden", lambda *inputs: good(*inputs) if next(calls) < 5 else 1 / 0)
            *parts, last = events_of(ask(address, max_tokens=50, stream=True))
        assert len(parts) > 2 and last["error"]["type"] == "server_error"
        assert ask(address, max_tokens=3).status_code == 200
        counters = requests.get(f"{address}/metrics", timeout=10).text
        assert 'chat_errors_total{status="500"} 2.0' in counters and "chat_requests_total 1.0" in counters


def test_a_reader_who_stops_reading_holds_no_row(monkeypatch):
    monkeypatch.setattr("chat_answers.SLOW", 0.5)
    served = scripted("word " * 450)
    with running(chat.create_app([served], seconds=1.0)) as address:
        port = int(address.rpartition(":")[2])
        body = json.dumps({"model": "scripted", "messages": HELLO, "stream": True, "logprobs": True, "n": 8,
                           "top_logprobs": 20, "max_tokens": 450}).encode()  # fmt: skip
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", port))
        one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        one.sendall(body)
        wait_until(lambda: served.scheduler.n_tokens > 0)
        wait_until(lambda: not served.scheduler.running)
        assert ask(address, max_tokens=2).status_code == 200
        one.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models") / "tiny"
    save_model(MODEL, TOKENIZER, made)
    return made


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(chat, "load_checkpoint", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert chat.main(["--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"127.0.0.1:{port} cannot be used (") and said.endswith("choose another with --port\n")


def test_the_command_serves_a_folder_that_vanishes_and_ends_under_load(folder, tmp_path):
    gone = tmp_path / "my_model"
    shutil.copytree(folder, gone)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, url = tmp_path / "log", f"http://127.0.0.1:{port}"
    command = [sys.executable, str(ROOT / "05_instruction_finetune/chat.py"), str(gone), "--port", str(port),
               "--dtype", "float32", "--alias", "gpt-4o-mini", "--rows", "4"]  # fmt: skip
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"LLM_DEVICE": "cpu"})
        try:
            def answers():
                assert server.poll() is None, log.read_text()
                with contextlib.suppress(requests.ConnectionError):
                    return requests.get(f"{url}/health", timeout=5).status_code == 200

            wait_until(answers, 60)
            shutil.rmtree(gone)
            body = {"model": "gpt-4o-mini", "messages": HELLO, "stream": True, "ignore_eos": True, "max_tokens": 400}
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(ask, url, **body) for _ in range(12)]
                running_now = 'chat_running{model="my_model"} 4.0'
                wait_until(lambda: running_now in requests.get(f"{url}/metrics", timeout=5).text)
                server.send_signal(signal.SIGTERM)
                begun = time.monotonic()
                ended = [one.exception() or one.result() for one in asked]
            assert server.wait(20) == -signal.SIGTERM and time.monotonic() - begun < 15
        finally:
            server.kill()
            server.wait()
    said = log.read_text()
    assert "Traceback" not in said and "ERROR" not in said, said
    assert "my_model: float32 on cpu, 4 rows of 512 tokens\n" in said
    for one in ended:
        if isinstance(one, requests.Response) and one.status_code == 200:
            assert events_of(one)[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        elif isinstance(one, requests.Response):
            error_of(one, 503)
        else:
            assert isinstance(one, requests.ConnectionError), one
    assert sum(isinstance(one, requests.Response) and one.status_code == 200 for one in ended) >= 4


# --- votes, classifier, what is served by itself


def test_votes_land_in_the_file(url, votes):
    body = {"prompt": "=cmd, a\nb", "left": "stand-in", "right": "alpaca", "left_answer": "x", "right_answer": "y",
            "choice": "right", "rater": "me, too\n"}  # fmt: skip
    for choice in ("right", "tie", "left"):
        got = requests.post(f"{url}/vote", json=body | {"choice": choice}, timeout=10)
        assert got.json() == {"kept": True}
    with votes.open(newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["preferred"] for row in rows] == ["alpaca", "tie", "stand-in"]
    assert len({row["pair"] for row in rows}) == 1
    assert (rows[0]["rater"], rows[0]["prompt"], rows[0]["choice"]) == ("me too", "'=cmd, a b", "right")
    error_of(requests.post(f"{url}/vote", json=body | {"left": "nobody"}, timeout=10), 404)
    error_of(requests.post(f"{url}/vote", json=body | {"choice": "both"}, timeout=10), 400)
    assert len(votes.read_text(encoding="utf-8").splitlines()) == 4


def a_vote(**more):
    return chat_api.Vote(**{"prompt": "hi", "left": "a", "right": "b", "left_answer": "x", "right_answer": "y",
                            "choice": "left", "rater": "me"} | more)  # fmt: skip


@pytest.mark.parametrize("text", ["=1+1", "\n =1+1", "a;=HYPERLINK(1)", "b|+1", "＝1", "x; @y"])
def test_no_cell_of_a_vote_begins_as_a_formula(text, tmp_path):
    chat.write_vote(tmp_path / "votes.csv", a_vote(prompt=text), threading.Lock())
    (row,) = csv.DictReader(io.StringIO((tmp_path / "votes.csv").read_text(encoding="utf-8")))
    assert not re.search(r"(^|[;|])\s*[=+\-@＝]", row["prompt"])
    assert re.sub(r"\s", "", row["prompt"].replace("'", "")) == re.sub(r"\s", "", text)


def test_a_vote_that_broke_off_stays_alone_and_strangers_files_are_left_alone(tmp_path):
    file, lock = tmp_path / "votes.csv", threading.Lock()
    chat.write_vote(file, a_vote(), lock)
    file.write_bytes(file.read_bytes() + b"half a li")
    chat.check_votes(file)
    chat.write_vote(file, a_vote(rater="next"), lock)
    assert [row["rater"] for row in csv.DictReader(file.open(encoding="utf-8"))] == ["me", None, "next"]
    strange = tmp_path / "results.csv"
    strange.write_text("name,result\na,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="something other than votes"):
        chat.check_votes(strange)
    assert strange.read_text(encoding="utf-8") == "name,result\na,1\n"


def test_a_dead_thread_is_no_health_and_refusals_are_counted():
    served = scripted()
    with running(chat.create_app([served])) as address:
        assert requests.get(f"{address}/health", timeout=10).json() == {"status": "ok"}
        assert error_of(requests.get(f"{address}/vote", timeout=10), 405)["code"] == "method_not_allowed"
        error_of(requests.get(f"{address}/health", headers={"Host": "evil.example"}, timeout=10), 403)
        counters = requests.get(f"{address}/metrics", timeout=10).text
        assert 'chat_errors_total{status="405"} 1.0' in counters and 'chat_errors_total{status="403"} 1.0' in counters
        served.scheduler.close()
        served.scheduler.closed = False  # as after a failure that nobody foresaw
        assert "thread has ended" in error_of(requests.get(f"{address}/health", timeout=10), 503)["message"]


def test_a_key_from_a_file_with_other_line_ends_is_that_key():
    assert chat.parse(["--host", "0.0.0.0", "--api-key", " secret\r\n"]).api_key == "secret"
    for blank in (" ", "\r"):
        with pytest.raises(SystemExit):
            chat.parse(["--host", "0.0.0.0", "--api-key", blank])


def test_a_classifier_answers_too(tmp_path):
    from shared.classification import SpamClassifier

    torch.manual_seed(0)
    gpt = GPTModel(GPTConfig(ALPACA_TOKENIZER.n_vocab, 64, emb_dim=16, n_heads=2, n_layers=1)).eval()
    classifier = SpamClassifier(gpt, ALPACA_TOKENIZER).eval()
    with running(chat.create_app([scripted()], classifier=classifier)) as address:
        texts = ["WIN a prize", "", "see you " * 100]
        got = requests.post(f"{address}/v1/classify", json={"input": texts}, timeout=10).json()["data"]
        labels, probabilities = classifier.predict(texts)
        assert [row["label"] for row in got] == labels
        for row, expected in zip(got, probabilities.tolist()):
            assert list(row["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
        assert requests.post(f"{address}/classify", json={"input": "hi"}, timeout=10).json()["data"]
        error_of(requests.post(f"{address}/classify", json={"input": []}, timeout=10), 400)


def test_what_is_served_where_nothing_is_named(monkeypatch, tmp_path, folder, capsys):
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LLM_MIRROR", "")
    monkeypatch.setenv("LLM_OFFLINE", "1")
    assert chat.usual_checkpoint() == "course_base" and "SmolLM2 is not available" in capsys.readouterr().out
    for i, (name, template) in enumerate((("older", "{{x}}"), ("newer", "{{x}}"), ("newest", None))):
        save_model(MODEL, TOKENIZER, tmp_path / name, template)
        os.utime(tmp_path / name / "tokenizer_config.json", (10**9 + i, 10**9 + i))
    assert chat.usual_checkpoint() == str(tmp_path / "newer")
    name, model, tokenizer, template = chat.load_checkpoint("course_base")
    assert name == "course_base" and not chat.serve(name, model, tokenizer, chat_template=template).is_chat
    assert chat.load_checkpoint(str(tmp_path / "newer"))[3] == "{{x}}"


@pytest.mark.parametrize(("template", "form"), [
    (jinja(COURSE), chat_text.course_tokens), (jinja(COURSE, generation=True), chat_text.course_tokens),
    (ALPACA_CHAT_TEMPLATE, chat_text.alpaca_tokens), ("{{x}}", None), (None, None),
])  # fmt: skip
@pytest.mark.parametrize("beside", [False, True], ids=["in the settings", "in a file of its own"])
def test_a_model_is_asked_in_the_form_in_which_it_was_trained(template, form, beside, tmp_path):
    gpt, tokenizer = load_model(COURSE_BASE)
    save_model(gpt, tokenizer, tmp_path / "tuned", None if beside else template)
    if beside and template:  # as transformers writes it
        (tmp_path / "tuned" / "chat_template.jinja").write_text(template, encoding="utf-8")
    name, model, tokenizer, found = chat.load_checkpoint(str(tmp_path / "tuned"))
    served, talk = chat.serve(name, model, tokenizer, chat_template=found), [("user", "Hello"), ("assistant", "Hi!"),
                                                                           ("user", "My flight?")]  # fmt: skip
    assert served.form is (form or chat_text.alpaca_tokens) and served.is_chat == (form is not None)
    text = tokenizer.decode(fitted_prompt(tokenizer, talk, 200, 20, served.form)[0])
    if form is chat_text.course_tokens:
        assert text == render([{"role": role, "content": said} for role, said in talk], COURSE, prompt=True)
    else:
        assert text.endswith("### Instruction:\nMy flight?\n\n### Response:\n")


@pytest.mark.parametrize(("template", "form"), [
    (None, chat_text.chatml_tokens), ("{{x}}", chat_text.chatml_tokens), (jinja(CHATML), chat_text.chatml_tokens),
    (ALPACA_CHAT_TEMPLATE, chat_text.alpaca_tokens), (jinja(COURSE), chat_text.course_tokens),
])  # fmt: skip
def test_a_tuned_smollm2_too_is_asked_in_the_form_in_which_it_was_trained(template, form):
    assert chat_text.form_of(TOKENIZER, template) == (form, True)  # its marks are those of SmolLM2


def test_many_clients_get_what_each_would_get_alone(url):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(one(client, i) for i in range(40)))

    async def one(client, i):
        made = await client.chat.completions.create(
            model="stand-in", messages=[{"role": "user", "content": "word " * (i % 7)}], max_tokens=8 + i % 5,
            temperature=0 if i % 2 else 1.0, seed=i, stream=False)  # fmt: skip
        return made.choices[0].message.content

    together = asyncio.run(ask_all())
    for i in (0, 1, 7, 22, 39):
        alone = ask(url, model="stand-in", messages=[{"role": "user", "content": "word " * (i % 7)}],
                    max_tokens=8 + i % 5, temperature=0 if i % 2 else 1.0, seed=i).json()  # fmt: skip
        assert alone["choices"][0]["message"]["content"] == together[i]
