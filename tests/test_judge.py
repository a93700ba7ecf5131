"""The judge, against a local server that answers well, slowly, wrongly, in prose, and not at all."""

import contextlib
import json
import re
import socket
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from shared import judge_servers as module
from shared.judge import COMPARISON, RUBRIC, Judge, Judgement
from shared.judge_servers import JudgeError, find_judge, ollama, openai_compatible
from tests.local_server import LocalServer, go_direct

ENTRY = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
GOOD = '{"reason": "It is a colour.", "score": 4}'


class Server(LocalServer):
    """Both interfaces. `said` is a list of answers, one for each request; the last one stays. `log` holds requests."""

    def __init__(self):
        self.said, self.models, self.log = [reply(GOOD)], ["judge-7b", "other"], []
        self.list_models = None  # answers in place of the list of models
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.log.append((self.path, None, dict(self.headers)))
                if outer.list_models is not None:
                    with contextlib.suppress(OSError):  # the client has gone
                        outer.list_models(self)
                    return
                if self.path != "/api/tags" or outer.models is None:
                    self.send_error(404)
                    return
                models = outer.models if isinstance(outer.models, dict) else {
                    "models": [{"name": name} for name in outer.models]
                }  # fmt: skip
                send(self, json.dumps(models))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.log.append((self.path, body, dict(self.headers)))
                answer = outer.said.pop(0) if len(outer.said) > 1 else outer.said[0]
                if self.path not in ("/api/chat", "/v1/chat/completions"):
                    self.send_error(404)
                    return
                try:
                    answer(self)
                except OSError:  # the client has gone
                    pass

            def log_message(self, *args):
                pass

        super().__init__(Handler)

    @property
    def prompts(self):
        return [body["messages"][-1]["content"] for _, body, _ in self.log if body]


def send(handler, text, status=200):
    raw = text.encode("utf-8") if isinstance(text, str) else text
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


def reply(text):
    """A whole answer of either interface, with `text` as what the model said."""

    def answer(handler):
        message = {"role": "assistant", "content": text}
        if handler.path == "/api/chat":
            send(handler, json.dumps({"model": "judge-7b", "message": message, "done": True}))
        else:
            send(handler, json.dumps({"choices": [{"index": 0, "message": message}]}))

    return answer


def raw(text, status=200):
    return lambda handler: send(handler, text, status)


def slow(seconds):
    def answer(handler):
        time.sleep(seconds)
        reply(GOOD)(handler)

    return answer


def broken_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"mess')


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("LLM_JUDGE_URL", "LLM_JUDGE_MODEL", "LLM_JUDGE_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    go_direct(monkeypatch)


@pytest.fixture(params=["ollama", "openai"])
def ask(request, server):
    return asker(request.param, server.address)


def asker(kind, address, timeout=5):
    if kind == "ollama":
        return ollama("judge-7b", address, timeout)
    return openai_compatible("judge-7b", address + "/v1", timeout=timeout)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def canned(*replies):
    """An `ask` that gives these replies in turn, the last one again and again, and remembers the prompts."""
    left = list(replies)

    def ask(prompt):
        ask.prompts.append(prompt)
        return left.pop(0) if len(left) > 1 else left[0]

    ask.prompts = []
    return ask


# --- servers ---------------------------------------------------------------------------------------------------------


def test_ollama_is_asked_at_temperature_zero(server):
    assert ollama("judge-7b", server.address)("Hello {x} 漢字") == GOOD
    [(path, body, _)] = server.log
    assert path == "/api/chat" and body["model"] == "judge-7b" and body["stream"] is False
    assert body["messages"] == [{"role": "user", "content": "Hello {x} 漢字"}]
    assert body["options"]["temperature"] == 0 and body["options"]["seed"] == 0


@pytest.mark.parametrize("ending", ["/v1", "/v1/"])
@pytest.mark.parametrize("key", [None, "secret"])
def test_openai_compatible_is_asked_at_temperature_zero(server, ending, key):
    assert openai_compatible("judge-7b", server.address + ending, key)("Hello") == GOOD
    [(path, body, headers)] = server.log
    assert path == "/v1/chat/completions" and body["model"] == "judge-7b" and body["temperature"] == 0
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert headers.get("Authorization") == ("Bearer secret" if key else None)


def test_judge_on_a_server(ask):
    assert Judge(ask, "judge-7b").score(ENTRY, "Red.") == Judgement(4, "It is a colour.")


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_slow_server(server, kind):
    server.said = [slow(1.0)]
    started = time.monotonic()
    with pytest.raises(JudgeError, match=f"^http://127.0.0.1:{server.port}/.*: no answer within 0.2 s$"):
        Judge(asker(kind, server.address, timeout=0.2), "judge-7b").score(ENTRY, "Red.")
    assert time.monotonic() - started < 0.9


@pytest.mark.parametrize(("answer", "message"), [
    (raw("model 'judge-7b' not found", 404), "HTTP 404 Not Found: model 'judge-7b' not found"),
    (raw("x" * 5000, 500), "HTTP 500 Internal Server Error: x{200}$"),
    (raw("", 503), "HTTP 503 Service Unavailable"),
    (raw("<html>busy</html>"), "no JSON"), (raw(""), "no JSON"), (raw("[" * 10**5), "no JSON"),
    (raw(b"\xff\xfe\xfd"), "."),
    (raw("{}"), "gave no answer that can be read"), (raw("[]"), "gave no answer that can be read"),
    (raw("null"), "gave no answer that can be read"), (raw('"text"'), "gave no answer that can be read"),
    (raw('{"message": {}, "choices": []}'), "gave no answer that can be read"),
    (raw('{"message": "hi", "choices": [{"message": "hi"}]}'), "gave no answer that can be read"),
    (raw('{"message": null, "choices": null}'), "gave no answer that can be read"),
    (reply(7), "gave int where text belongs"), (reply(None), "gave NoneType where text belongs"),
    (reply([{"type": "text", "text": "4"}]), "gave list where text belongs"),
    (reply({"score": 4}), "gave dict where text belongs"),
    (broken_off, "."),
])  # fmt: skip
def test_server_that_answers_wrongly(server, ask, answer, message):
    server.said = [answer]
    with pytest.raises(JudgeError, match=message) as caught:
        Judge(ask, "judge-7b").score(ENTRY, "Red.")
    assert str(caught.value).startswith(server.address) and len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_no_server_at_all(kind):
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(JudgeError, match=f"^{address}/.*: no connection .*refused") as caught:
        asker(kind, address)("Hello")
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("address", ["localhost", "", "http://", "ftp://127.0.0.1"])
def test_address_that_is_none(address):
    with pytest.raises(JudgeError):
        ollama("judge-7b", address)("Hello")


def drip(handler):
    """A byte of the answer now and then, without an end."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def drip_headers(handler):
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def flood(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b" " * 2**20)
        handler.sent += 2**20


@pytest.mark.parametrize("answer", [drip, drip_headers])
def test_no_server_holds_the_judge_up(server, ask, answer):
    server.said, ask = [answer], asker("ollama", server.address, timeout=0.3)
    started = time.monotonic()
    with pytest.raises(JudgeError, match=f"^{server.address}/api/chat: no .*answer within 0.3 s"):
        ask("Hello")
    assert time.monotonic() - started < 2


def test_no_answer_fills_the_memory(server, ask):
    sent = []

    def answer(handler):
        handler.sent = 0
        try:
            flood(handler)
        finally:
            sent.append(handler.sent)

    server.said = [answer]
    with pytest.raises(JudgeError, match="no end of its answer"):
        ask("Hello")
    until = time.monotonic() + 5
    while not sent and time.monotonic() < until:
        time.sleep(0.01)
    assert sent and sent[0] < 2**26


@pytest.mark.parametrize("answer", [drip, drip_headers])
def test_a_server_that_drips_is_no_judge(server, monkeypatch, capsys, answer):
    server.list_models = answer
    monkeypatch.setenv("OLLAMA_HOST", server.address)
    started = time.monotonic()
    assert find_judge() is None and time.monotonic() - started < 8
    assert capsys.readouterr().out.startswith("no judge listens here")


def busy(status, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.mark.parametrize("answer", [busy(429, Retry_After="0"), busy(503, Retry_After="0"), busy(429)])
def test_a_busy_server_is_asked_again(server, ask, answer):
    server.said = [answer, reply(GOOD)]
    assert Judge(ask, "judge-7b").score(ENTRY, "Red.").score == 4
    assert len(server.log) == 2


def test_a_server_that_is_busy_for_long_is_named_with_its_reason(server, ask):
    server.said = [busy(429, Retry_After="86400")]
    with pytest.raises(JudgeError, match=f"^{server.address}/.*: HTTP 429 Too Many Requests, Retry-After: 86400"):
        ask("Hello")
    assert len(server.log) == 1


# --- what the model said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    GOOD, f"  {GOOD}\n", f"```json\n{GOOD}\n```", f"Here is my judgement:\n\n{GOOD}\n\nI hope it helps {{you}}.",
    '{"score": 4, "reason": "It is a colour."}', '{"reason": "It is a colour.", "score": "4"}',
    '{"reason": "It is a colour.", "score": 4.0}', '{"reason": "It is a colour.", "score": " 4 "}',
    f"The set {{a, b}} is {{}} and {{not JSON}}. {GOOD}", f'{{"result": {GOOD}}}', f"[{GOOD}]",
    f"Reply with {{\"reason\": \"<one sentence>\", \"score\": <1 to 5>}}: {GOOD}",
    json.dumps(json.loads(GOOD), indent=4),
    '{"reason": "It is a colour.", "score": 4, "more": [{"score": 1}]}',
], ids=range(14))  # fmt: skip
def test_verdict_is_found(text):
    ask = canned(text)
    assert Judge(ask, "x").score(ENTRY, "Red.") == Judgement(4, "It is a colour.")
    assert len(ask.prompts) == 1


@pytest.mark.parametrize("text", [
    f'<think>Perhaps {{"score": 1}}?</think>\n{GOOD}', f'<think>{{"score": 1}}</think>{GOOD}<think></think>{GOOD}',
    f'It is {{"score": 1}}, no, wait.</think> {GOOD}', f'<thinking>{{"score": 1}}</thinking> {GOOD}',
    f'<think>Is it <think>? {{"score": 1}}</think> {GOOD}', f'{{"reason": "draft", "score": 2}} then {GOOD}',
    f'{{"reason": "draft", "score": 2}}\n{GOOD}\n{{"score": 1', f"<think></think>{GOOD} {{}} {{\"note\": 1}}",
], ids=range(8))  # fmt: skip
def test_the_last_verdict_after_the_reasoning_counts(text):
    ask = canned(text)
    assert Judge(ask, "x").score(ENTRY, "Red.") == Judgement(4, "It is a colour.") and len(ask.prompts) == 1


@pytest.mark.parametrize("text", [
    f"<think>{GOOD}", f"<think>Perhaps {GOOD}, or", f"{GOOD}<think>or", f"<think>{GOOD}</think>", f"{GOOD}</think>",
    f"<thinking>{GOOD}</thinking> I cannot say.",
], ids=range(6))  # fmt: skip
def test_reasoning_without_an_answer_is_no_verdict(text):
    assert Judge(canned(text), "x").score(ENTRY, "Red.") == Judgement(None, text)


@pytest.mark.parametrize("mark", ["<think>", "</think>", "{", "<think>{\"score\": 1}</think>"])
def test_marks_in_the_reason_are_the_reason(mark):
    text = json.dumps({"reason": f"It says {mark}.", "score": 2})
    assert Judge(canned(text), "x").score(ENTRY, "Red.") == Judgement(2, f"It says {mark}.")


@pytest.mark.parametrize(("text", "expected"), [
    ("Half \ud83d", "Half \ufffd"), ("\ud83d\ude00", "\U0001f600"), ("\udc00\udbff", "\ufffd\ufffd"),
])  # fmt: skip
def test_half_surrogates_are_replaced_in_question_answer_and_cache(server, ask, tmp_path, text, expected):
    """In the entry, in what the server sends as \\ud83d, and in what the model wrote so within its JSON."""
    for ascii_only in (False, True):
        said = json.dumps({"reason": text, "score": 4}, ensure_ascii=ascii_only)
        server.said, server.log[:] = [reply(said)], []
        judge = Judge(ask, f"judge {len(said)}", tmp_path)
        for _ in range(2):
            assert judge.score(ENTRY | {"input": text}, text) == Judgement(4, expected)
            assert Judge(ask, "x").score(ENTRY, "Red.") == Judgement(4, expected)
        assert f"Input: {expected}\n" in server.prompts[0] and f"Answer to grade: {expected}\n" in server.prompts[0]
        assert len(server.log) == 3  # the cache answers the second time
    assert Judge(canned(text), "x").score(ENTRY, "Red.") == Judgement(None, expected)


@pytest.mark.parametrize("text", [
    "I would say a four.", "", "4", "4/5", '{"reason": "Good.", "score": 7}', '{"reason": "Good.", "score": 0}',
    '{"score": "four"}', '{"score": "4/5"}', '{"score": 4.5}', '{"score": null}', '{"score": true}', '{"score": [4]}',
    '{"score": {"value": 4}}', '{"score": -4}', '{"score": NaN}', '{"score": Infinity}', '{"reason": "Good."}',
    '{"score": 4', "{" * 500, '{"a":' * 3000, '{"score": 1' + "0" * 400 + "}", '{"better": "A"}', "[4]",
], ids=range(23))  # fmt: skip
def test_without_a_verdict_it_asks_once_more_and_then_gives_none(text):
    ask = canned(text)
    assert Judge(ask, "x").score(ENTRY, "Red.") == Judgement(None, text)
    assert len(ask.prompts) == 2 and ask.prompts[1].startswith(ask.prompts[0])
    assert ask.prompts[1].endswith("Only the JSON object, nothing else.")
    again = canned(text, GOOD)
    assert Judge(again, "x").score(ENTRY, "Red.") == Judgement(4, "It is a colour.")
    assert len(again.prompts) == 2


@pytest.mark.parametrize("score", [1, 2, 3, 4, 5])
def test_every_score(score):
    found = Judge(canned(json.dumps({"reason": "r", "score": score})), "x").score(ENTRY, "Red.")
    assert found == Judgement(score, "r") and type(found.score) is int


@pytest.mark.parametrize(("reason", "said"), [("", ""), (None, "None"), (5, "5"), ("a\n{b}", "a\n{b}")])
def test_reason_is_always_text(reason, said):
    assert Judge(canned(json.dumps({"reason": reason, "score": 2})), "x").score(ENTRY, "Red.").reason == said
    assert Judge(canned('{"score": 2}'), "x").score(ENTRY, "Red.") == Judgement(2, "")


@pytest.mark.parametrize("text", ["{", "}", "{output}", "{0}", "{{x}}", "{answer}", "%s", '{"score": 5}', "", "\\1"])
def test_braces_in_texts_reach_the_judge_as_they_are(text):
    entry, ask = {"instruction": f"I{text}", "input": f"N{text}", "output": f"O{text}"}, canned(GOOD)
    assert Judge(ask, "x").score(entry, f"Y{text}").score == 4
    for line in (f"Instruction: I{text}\n", f"Input: N{text}\n", f"Reference answer: O{text}\n",
                 f"Answer to grade: Y{text}\n"):  # fmt: skip
        assert ask.prompts[0].count(line) == 1
    assert ask.prompts[0].endswith('{"reason": "<one sentence>", "score": <1 to 5>}')
    ask = canned('{"better": "tie"}')
    assert Judge(ask, "x").compare(entry, f"Y{text}", f"Z{text}") == 0.5
    assert f"Answer A: Y{text}\nAnswer B: Z{text}\n" in ask.prompts[0]
    assert f"Answer A: Z{text}\nAnswer B: Y{text}\n" in ask.prompts[1]


def test_forms_say_where_there_is_no_input():
    ask = canned(GOOD)
    for entry in (ENTRY, {"instruction": "Name a colour.", "output": "Blue."}, ENTRY | {"input": None}):
        Judge(ask, "x").score(entry, "Red.")
    assert len(set(ask.prompts)) == 1 and "Input: (none)\n" in ask.prompts[0]
    for form in (RUBRIC, COMPARISON):
        assert all(f"{{{name}}}" in form for name in ("instruction", "input", "output"))


# --- pairs -----------------------------------------------------------------------------------------------------------


def prefers(rule):
    """A judge that reads the two answers out of the comparison and says which is better: rule(A, B)."""

    def ask(prompt):
        ask.n += 1
        a = prompt.split("\nAnswer A: ")[1].split("\nAnswer B: ")[0]
        b = prompt.split("\nAnswer B: ")[1].split("\n\nWhich is better")[0]
        return json.dumps({"reason": "r", "better": rule(a, b)})

    ask.n = 0
    return ask


@pytest.mark.parametrize(("rule", "expected"), [
    (lambda a, b: "A" if len(a) > len(b) else "B", 1.0), (lambda a, b: "A" if len(a) < len(b) else "B", 0.0),
    (lambda a, b: "A", 0.5), (lambda a, b: "B", 0.5), (lambda a, b: "tie", 0.5),
    (lambda a, b: "A" if len(a) > len(b) else "tie", 0.5), (lambda a, b: "tie" if len(a) > len(b) else "A", 0.5),
    (lambda a, b: " a " if len(a) > len(b) else "b", 1.0), (lambda a, b: "both", None), (lambda a, b: None, None),
    (lambda a, b: "both" if len(a) > len(b) else "A", None), (lambda a, b: ["A"], None), (lambda a, b: 1, None),
], ids=range(13))  # fmt: skip
def test_pairs_are_asked_in_both_orders(rule, expected):
    """A win counts only where it is seen from both places; a preference for a place is a tie."""
    ask = prefers(rule)
    found = Judge(ask, "x").compare(ENTRY, "a long answer", "short")
    assert found == expected
    assert Judge(ask, "x").compare(ENTRY, "short", "a long answer") == (None if expected is None else 1 - expected)
    if expected is not None:
        assert ask.n == 4


def test_reasoning_does_not_turn_a_preference_round():
    def ask(prompt):
        better = "A" if "Answer A: good" in prompt else "B"
        doubt = json.dumps({"better": "B" if better == "A" else "A"})
        return f'<think>At first {doubt}, but no.</think>{json.dumps({"reason": "r", "better": better})}'

    judge = Judge(ask, "x")
    assert judge.compare(ENTRY, "good", "bad") == 1.0 and judge.compare(ENTRY, "bad", "good") == 0.0


def test_comparison_in_prose_is_asked_again():
    ask = canned("I like A.", '{"better": "A"}', '{"score": 3}', 'So: ```json\n{"better": "B"}\n```')
    assert Judge(ask, "x").compare(ENTRY, "Red.", "x") == 1.0
    assert len(ask.prompts) == 4


# --- the cache -------------------------------------------------------------------------------------------------------


def test_second_time_nothing_is_asked(server, ask, tmp_path):
    judge = Judge(ask, "judge-7b", tmp_path / "new" / "cache")
    first = judge.score(ENTRY, "Red {漢字}.")
    assert len(server.log) == 1
    assert judge.score(ENTRY, "Red {漢字}.") == first == Judge(ask, "judge-7b", str(judge.cache)).score(
        ENTRY, "Red {漢字}."
    )
    assert len(server.log) == 1
    [file] = judge.cache.iterdir()
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept == {"judge": "judge-7b", "prompt": server.prompts[0], "reply": GOOD}


@pytest.mark.parametrize("change", ["name", "answer", "instruction", "input", "reference"])
def test_another_question_is_asked_anew(server, ask, tmp_path, change):
    Judge(ask, "judge-7b", tmp_path).score(ENTRY, "Red.")
    entry = dict(ENTRY)
    if change in ("instruction", "input", "reference"):
        entry["output" if change == "reference" else change] += "!"
    name = "judge-8b" if change == "name" else "judge-7b"
    Judge(ask, name, tmp_path).score(entry, "Red!" if change == "answer" else "Red.")
    assert len(server.log) == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"5", b"{}", b'{"reply": 5}', b'{"reply": null}', b"\xff\xfe", b"\0" * 100,
    b"[" * 100_000,
])  # fmt: skip
def test_damaged_cache_file_is_asked_for_again(server, ask, tmp_path, content):
    judge = Judge(ask, "judge-7b", tmp_path)
    expected = judge.score(ENTRY, "Red.")
    [file] = tmp_path.iterdir()
    file.write_bytes(content)
    assert judge.score(ENTRY, "Red.") == expected and len(server.log) == 2
    assert judge.score(ENTRY, "Red.") == expected and len(server.log) == 2  # and it is whole again
    assert list(tmp_path.iterdir()) == [file]


def test_errors_are_not_kept_and_prose_is(server, ask, tmp_path):
    judge = Judge(ask, "judge-7b", tmp_path)
    server.said = [raw("broken", 500)]
    with pytest.raises(JudgeError):
        judge.score(ENTRY, "Red.")
    assert not list(tmp_path.iterdir())
    server.said = [reply("A four."), reply("Still a four.")]
    for _ in range(2):
        assert judge.score(ENTRY, "Red.") == Judgement(None, "Still a four.")
    assert len(server.log) == 3 and len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_is_named_before_anything_is_asked(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    ask = canned(GOOD)
    with pytest.raises(OSError, match="file"):
        Judge(ask, "x", tmp_path / "file").score(ENTRY, "Red.")
    assert ask.prompts == [] and (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_is_named_leaves_nothing_half_and_loses_no_reply(tmp_path, monkeypatch, capsys):
    def full(self, text, **kwargs):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    judge = Judge(canned(GOOD), "x", tmp_path)
    assert judge.score(ENTRY, "Red.").score == 4  # it may have been paid for
    said = capsys.readouterr().out
    assert re.fullmatch(r"a reply of x could not be kept: .*No space left on device: '.*\.json'\n", said)
    assert not list(tmp_path.iterdir())


def test_both_orders_are_kept(tmp_path):
    ask = prefers(lambda a, b: "A" if a > b else "B")
    judge = Judge(ask, "x", tmp_path)
    assert judge.compare(ENTRY, "b", "a") == 1.0 == judge.compare(ENTRY, "b", "a") and ask.n == 2
    assert judge.compare(ENTRY, "a", "b") == 0.0 and ask.n == 2  # the same two questions


# --- which judge is there --------------------------------------------------------------------------------------------


def test_nobody_listens(monkeypatch, capsys):
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    assert find_judge() is None
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("models", [
    [], None, {"models": None}, {"models": [{}]}, {}, {"models": ["a"]}, {"models": {"name": "x"}}, {"models": 5},
])  # fmt: skip
def test_server_without_models_is_no_judge(server, monkeypatch, capsys, models):
    server.models = models
    monkeypatch.setenv("OLLAMA_HOST", server.address)
    assert find_judge() is None and capsys.readouterr().out.startswith("no judge listens here")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}", "http://127.0.0.1:{}/", " localhost:{} ",
                                  "0.0.0.0:{}"])  # fmt: skip
def test_ollama_is_found(server, monkeypatch, capsys, tmp_path, form):
    monkeypatch.setenv("OLLAMA_HOST", form.format(server.port))
    judge = find_judge(tmp_path)
    assert judge.name == "judge-7b" and judge.cache == tmp_path and capsys.readouterr().out == ""
    assert judge.score(ENTRY, "Red.").score == 4
    assert [path for path, _, _ in server.log] == ["/api/tags", "/api/chat"]
    monkeypatch.setenv("LLM_JUDGE_MODEL", "other")
    assert find_judge().name == "other"


@pytest.mark.parametrize(("host", "address"), [
    ("", "http://localhost:11434"), ("0.0.0.0", "http://127.0.0.1:11434"), ("box", "http://box:11434"),
    ("box:8080", "http://box:8080"), ("https://box", "https://box"), ("http://box:80/", "http://box:80"),
])  # fmt: skip
def test_address_of_ollama(monkeypatch, capsys, host, address):
    asked = []

    def ask_json(method, url, **settings):
        asked.append(url)
        raise module.Failed("no connection")

    monkeypatch.setattr(module, "ask_json", ask_json)
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert find_judge() is None and asked == [f"{address}/api/tags"]


def test_openai_compatible_is_found(server, monkeypatch, capsys):
    for name, value in (("URL", server.address + "/v1"), ("MODEL", "big"), ("KEY", " secret\n")):
        monkeypatch.setenv(f"LLM_JUDGE_{name}", value)
    judge = find_judge()
    assert judge.name == "big" and judge.cache is None and server.log == []
    assert judge.score(ENTRY, "Red.").score == 4
    [(path, body, headers)] = server.log
    assert path == "/v1/chat/completions" and body["model"] == "big" and headers["Authorization"] == "Bearer secret"


def test_judgements_have_a_name(server, monkeypatch):
    monkeypatch.setenv("LLM_JUDGE_URL", server.address + "/v1")
    with pytest.raises(ValueError, match="LLM_JUDGE_MODEL must name the model"):
        find_judge()


def test_two_processes_on_one_cache_lose_no_reply(tmp_path, monkeypatch):
    """The other one takes the part file away while this one writes."""
    def ask(prompt):
        for part in tmp_path.glob("*.part"):
            part.unlink()
        return GOOD

    real = Path.write_text

    def write_text(self, *args, **settings):
        real(self, *args, **settings)
        if self.suffix == ".part":
            self.unlink()

    monkeypatch.setattr(Path, "write_text", write_text)
    assert Judge(ask, "paid", tmp_path).score(ENTRY, "Red.").score == 4
