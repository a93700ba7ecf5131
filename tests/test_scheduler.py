"""Continuous batching: every text comes out as if it were alone, and rows, queue and thread end well."""

import random
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "05_instruction_finetune"))

import scheduler as scheduler_module  # noqa: E402
from scheduler import Closed, QueueFull, Scheduler, Work, fitting, move_row  # noqa: E402

from shared.generation import KVCache, generate, next_logits  # noqa: E402
from shared.gpt import GPTConfig, GPTModel  # noqa: E402
from shared.llama import LlamaConfig, LlamaModel  # noqa: E402
from shared.sampling import Sampling  # noqa: E402

V, CONTEXT = 97, 64


def tiny(kind):
    torch.manual_seed(3)
    if kind == "gpt":
        model = GPTModel(GPTConfig(V, CONTEXT, emb_dim=32, n_heads=4, n_layers=2))
    else:
        model = LlamaModel(LlamaConfig(V, CONTEXT, emb_dim=32, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=48))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # so that the next token depends on all before it
    return model.eval()


MODELS = {kind: tiny(kind) for kind in ("gpt", "llama")}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def prompts_of(lengths, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(V) for _ in range(n)] for n in lengths]


class Client:
    """Notes what a work hands over."""

    def __init__(self, prompt, max_new=12, **settings):
        self.tokens, self.logprobs, self.reasons = [], [], []
        self.work = Work(prompt, max_new, self.on_token, self.reasons.append, **settings)

    def on_token(self, token, logprobs):
        self.tokens.append(token)
        self.logprobs.append(logprobs)
        return False


def run(scheduler, clients=(), seed=None):
    """Steps until nothing is left to do; with a `seed`, the clients come at random moments."""
    draw, left = random.Random(seed), list(clients)
    for _ in range(2000):
        while left and (seed is None or draw.random() < 0.4):
            scheduler.submit(left.pop(0).work)
        if not (left or scheduler.running or scheduler.waiting):
            return
        scheduler.step()
        for row, work in enumerate(scheduler.running):  # the rows in use are the first ones, each with its own text
            known = scheduler.cache.tokens[row]
            assert known == (work.prompt + work.new)[: len(known)]
        assert not any(scheduler.cache.tokens[len(scheduler.running) :])
    raise AssertionError("the work did not end")


def settings(seed):
    return Sampling(temperature=1.1, top_p=0.95, repetition_penalty=1.1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_greedy_rows_that_come_and_go_equal_generate_alone(model, seed):
    draw = random.Random(seed)
    prompts = prompts_of([draw.randint(1, 40) for _ in range(14)], seed)
    clients = [Client(prompt, draw.randint(1, 24)) for prompt in prompts]
    run(Scheduler(model, n_rows=4), clients, seed)
    for client, prompt in zip(clients, prompts):
        alone = generate(model, [prompt], client.work.max_new)[0, len(prompt) :].tolist()
        assert client.tokens == alone and client.reasons == ["length"]


def test_the_same_seed_gives_the_same_answer_whatever_runs_beside_it(model):
    (prompt,), others = prompts_of([9]), prompts_of(range(3, 20), seed=5)

    def answer(n_rows, neighbours, when):
        me = Client(prompt, 20, sampling=settings(2**40 + 1))
        crowd = [Client(one, 5 + i % 9, sampling=settings(i)) for i, one in enumerate(neighbours)]
        crowd.insert(min(4, len(crowd)), me)
        run(Scheduler(model, n_rows), crowd, when)
        return me.tokens

    alone = answer(1, [], None)
    assert len(set(alone)) > 5
    for n_rows, neighbours, when in ((4, others, 1), (4, others, 2), (16, others[:7], 3), (2, others[::-1], 4)):
        assert answer(n_rows, neighbours, when) == alone
    assert alone == generate(model, [prompt], 20, temperature=1.1, top_p=0.95, repetition_penalty=1.1,
                             generator=torch.Generator().manual_seed(2**40 + 1))[0, 9:].tolist()  # fmt: skip


def test_long_prompts_are_read_in_pieces_while_others_go_on(model, monkeypatch):
    monkeypatch.setattr(scheduler_module, "PIECE", 8)
    long, short = prompts_of([50, 5])
    clients = [Client(short, 30), Client(long, 10), Client(long[:33], 10)]
    scheduler, passes = Scheduler(model, n_rows=3), []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, inputs: passes.append(1))
    for client in clients:
        scheduler.submit(client.work)
    scheduler.step()
    assert len(clients[0].tokens) == 2 and clients[1].work.n_read == 8, "the short text did not wait for the long one"
    assert scheduler.n_passes == len(passes) == 3, "a step: the short prompt, a piece of the long one, a token"
    run(scheduler)
    hook.remove()
    assert scheduler.n_passes == len(passes)
    for client in clients:
        n = len(client.work.prompt)
        assert client.tokens == generate(model, [client.work.prompt], client.work.max_new)[0, n:].tolist()


def test_a_text_ends_with_its_mark_its_length_or_the_end_of_its_row():
    model = MODELS["gpt"]
    (prompt,) = prompts_of([10])
    alone = generate(model, [prompt], 30)[0, 10:].tolist()
    end = alone[4]
    stopped = Client(prompt, 30, end_ids=frozenset({end}))
    full = Client(prompts_of([CONTEXT - 3])[0], 30)
    enough = Client(prompt, 30)
    enough.work.on_token = lambda token, logprobs: enough.on_token(token, logprobs) or len(enough.tokens) == 3
    run(Scheduler(model), [stopped, full, enough])
    assert (stopped.tokens, stopped.reasons) == (alone[: alone.index(end)], ["stop"])
    assert len(full.tokens) == 4 and full.reasons == ["length"], "the last token need not be read"
    assert (enough.tokens, enough.reasons) == (alone[:3], ["stop"])


def test_logprobs_are_the_models_own():
    model = MODELS["llama"]
    (prompt,) = prompts_of([7])
    client = Client(prompt, 6, sampling=settings(1), wants_logprobs=True, presence_penalty=1.5)
    other = Client(prompt, 6)
    run(Scheduler(model), [client, other])
    for i, logprobs in enumerate(client.logprobs):
        expected = next_logits(model, [prompt + client.tokens[:i]])[0].log_softmax(dim=-1)
        torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    assert other.logprobs == [None] * 6


@pytest.mark.parametrize(("presence", "frequency"), [(0.7, 0.0), (0.0, 0.4), (-1.0, 0.25)])
def test_presence_and_frequency_penalties(model, presence, frequency):
    (prompt,) = prompts_of([5])
    client = Client(prompt, 25, presence_penalty=presence, frequency_penalty=frequency)
    run(Scheduler(model), [Client(prompt, 25), client])
    expected = []
    for _ in range(25):
        logits = next_logits(model, [prompt + expected])[0]
        for token in set(expected):
            logits[token] -= presence + frequency * expected.count(token)
        expected.append(logits.argmax().item())
    assert client.tokens == expected


def test_ids_beyond_the_tokenizer_are_never_drawn():
    client = Client([1, 2, 19], 40, sampling=settings(0))
    run(Scheduler(MODELS["gpt"], n_vocab=20), [client])
    assert max(client.tokens) < 20 and len(client.tokens) == 40


# --- the queue


def test_the_queue_is_bounded_and_takes_all_of_a_request_or_none():
    scheduler = Scheduler(MODELS["gpt"], n_rows=2, max_waiting=3)
    clients = [Client([1], 5) for _ in range(8)]
    scheduler.submit(*(client.work for client in clients[:2]))
    scheduler.step()
    scheduler.submit(*(client.work for client in clients[2:4]))
    with pytest.raises(QueueFull):
        scheduler.submit(*(client.work for client in clients[4:6]))
    scheduler.submit(clients[6].work)
    with pytest.raises(QueueFull):
        scheduler.submit(clients[7].work)
    run(scheduler)
    assert [len(client.tokens) for client in clients] == [5, 5, 5, 5, 0, 0, 5, 0]


def test_who_came_first_begins_first():
    began, scheduler = [], Scheduler(MODELS["gpt"], n_rows=2)
    for i in range(7):
        scheduler.submit(Work([i + 1], 3 + i % 2, lambda token, logprobs, i=i: began.append(i)))
    run(scheduler)
    assert list(dict.fromkeys(began)) == list(range(7))


def test_a_client_that_leaves_frees_its_place():
    scheduler = Scheduler(MODELS["gpt"], n_rows=2)
    clients = [Client([i], 40) for i in range(4)]
    for client in clients:
        scheduler.submit(client.work)
    scheduler.step()
    clients[0].work.cancel()
    clients[2].work.cancel()  # which still waits
    scheduler.step()
    assert clients[0].reasons == clients[2].reasons == ["cancelled"] and clients[2].tokens == []
    assert [work is clients[i].work for work, i in zip(scheduler.running, (1, 3))] == [True, True]
    run(scheduler)
    for i in (1, 3):
        assert clients[i].tokens == generate(MODELS["gpt"], [[i]], 40)[0, 1:].tolist()


def test_a_deadline_ends_who_runs_and_who_waits():
    scheduler, soon = Scheduler(MODELS["gpt"], n_rows=1), time.monotonic() + 0.05
    runs, waits, last = Client([1], 60, deadline=soon), Client([2], 60, deadline=soon), Client([3], 2)
    for client in (runs, waits, last):
        scheduler.submit(client.work)
    scheduler.step()
    time.sleep(0.06)
    run(scheduler)
    assert runs.tokens and runs.reasons == waits.reasons == ["late"] and not waits.tokens
    assert last.reasons == ["length"]


@pytest.mark.parametrize(("prompt", "max_new", "says"), [
    ([], 5, "the prompt has 0 tokens; a row has room for 1 to 64"), ([1] * 65, 5, "has 65 tokens"),
    ([1], 0, "max_new is 0; it must be at least 1"), ([1, V], 5, "an unknown token; the known ones are 0 to 96"),
    ([-1], 5, "unknown token"),
])
def test_what_cannot_be_done_is_refused(prompt, max_new, says):
    scheduler = Scheduler(MODELS["gpt"])
    with pytest.raises(ValueError, match=says):
        scheduler.submit(Work(prompt, max_new))
    assert not scheduler.waiting


def test_a_step_that_fails_ends_its_texts_and_the_next_ones_are_served(monkeypatch, caplog):
    scheduler, first, second = Scheduler(MODELS["gpt"]), Client([1], 9), Client([1], 9)
    scheduler.submit(first.work)
    scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(MODELS["gpt"], "hidden", lambda *_: 1 / 0)
        scheduler.step()
    assert first.reasons == ["error"] and "ZeroDivisionError" in caplog.text
    run(scheduler, [second])
    assert second.tokens == generate(MODELS["gpt"], [[1]], 9)[0, 1:].tolist()


# --- the thread


def test_many_threads_ask_at_once_and_close_ends_the_thread():
    scheduler = Scheduler(MODELS["gpt"], n_rows=3)
    scheduler.start()
    ended = [threading.Event() for _ in range(12)]
    clients = [Client([i + 1], 6) for i in range(12)]
    for client, event in zip(clients, ended):
        client.work.on_end = lambda reason, event=event: event.set()
        threading.Thread(target=scheduler.submit, args=(client.work,)).start()
    assert all(event.wait(20) for event in ended)
    for i, client in enumerate(clients):
        assert client.tokens == generate(MODELS["gpt"], [[i + 1]], 6)[0, 1:].tolist()
    scheduler.close()
    assert not scheduler.thread.is_alive()
    with pytest.raises(Closed):
        scheduler.submit(Work([1], 1))


def test_drain_lets_the_running_texts_end_and_sends_away_who_waits():
    scheduler = Scheduler(MODELS["gpt"], n_rows=1)
    runs, waits = Client([1], 40), Client([2], 40)
    scheduler.submit(runs.work, waits.work)
    scheduler.step()
    scheduler.start()
    scheduler.close(30)
    assert (len(runs.tokens), runs.reasons, waits.reasons) == (40, ["length"], ["closed"])
    late = Scheduler(MODELS["gpt"], n_rows=1)
    runs = Client([1], 40)
    late.submit(runs.work)
    late.step()
    late.drain(-1)
    late.step()
    assert runs.reasons == ["late"]


# --- its parts


def test_a_row_moves_with_all_that_it_holds():
    cache = KVCache(MODELS["llama"], 3)
    cache.keys.normal_(), cache.values.normal_()
    cache.tokens = [[1], [], [4, 5, 6]]
    keys, values, free = cache.keys[:, 2, :, :3].clone(), cache.values[:, 2, :, :3].clone(), cache.keys[:, 0].clone()
    move_row(cache, 2, 1)
    assert cache.tokens[1] == [4, 5, 6]
    assert torch.equal(cache.keys[:, 1, :, :3], keys) and torch.equal(cache.values[:, 1, :, :3], values)
    assert torch.equal(cache.keys[:, 0], free)


def test_prompts_that_fit_together():
    assert fitting([4, 5, 6], [10, 20, 10], 60) == [4, 5, 6]
    assert fitting([4, 5, 6], [10, 20, 10], 59) == [4, 5]
    assert fitting([4], [100], 60) == [4], "one alone always fits"
    assert fitting([], [], 60) == []


def test_the_file_that_the_lesson_opens_is_read_in_one_sitting():
    assert len(Path(scheduler_module.__file__).read_text(encoding="utf-8").splitlines()) <= 300
