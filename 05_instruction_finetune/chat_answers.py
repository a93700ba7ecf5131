"""One request of chat.py, from the queue to its last token: its texts grow in the scheduler's thread, and are told."""

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from dataclasses import dataclass

import torch
from chat_api import ApiError, usage_of
from chat_text import STOPS, TextStream, end_ids, form_of
from fastapi.responses import JSONResponse, Response, StreamingResponse
from scheduler import Closed, QueueFull, Scheduler, Work

from shared.sampling import Sampling

USUAL_TOKENS = 512  # of an answer whose length nobody has said
SLOW = 60.0  # seconds for a client to read what was written in time
LATE = "the time for a request was over before the answer was complete"


@dataclass
class Served:
    """A model that answers under `name`."""

    name: str
    model: torch.nn.Module
    tokenizer: object
    scheduler: Scheduler
    form: object  # how it is asked, see chat_text.form_of
    is_chat: bool = True
    created: int = 0

    @property
    def room(self):
        return self.scheduler.cache.size


def serve(name, model, tokenizer, *, chat_template=None, rows=16, context=2048, queue=64):
    """Give a model its scheduler, which is not started yet. `chat_template` is the one in its folder."""
    scheduler = Scheduler(model, rows, context, queue, tokenizer.n_vocab)
    return Served(name, model, tokenizer, scheduler, *form_of(tokenizer, chat_template), int(time.time()))


class Answers:
    """The `n` texts that grow for one request, and the way of their tokens from the scheduler's thread to this one."""

    def __init__(self, served, prompts, request, seconds):
        asked, self.n_top = request.wanted()
        n = request.n or 1
        self.served, self.seconds = served, seconds
        self.loop, self.queue, self.come = asyncio.get_running_loop(), asyncio.Queue(), deque()
        self.n_prompt = sum(map(len, prompts))
        self.prompts = [prompt for prompt in prompts for _ in range(n)]
        self.max_new = USUAL_TOKENS if asked is None else asked
        stops = request.stops() + (list(STOPS[served.form]) if hasattr(request, "messages") else [])
        self.texts = [TextStream(served.tokenizer, stops, self.n_top) for _ in self.prompts]
        self.made, self.unfinished = [0] * len(self.prompts), len(self.prompts)
        seed = random.getrandbits(63) if request.seed is None else request.seed
        self.works = [self._work(i, request, seed + i, time.monotonic() + seconds) for i in range(len(self.prompts))]

    def _work(self, i, request, seed, deadline):
        text = self.texts[i]

        def send(*event):
            with contextlib.suppress(RuntimeError):  # the server has ended
                self.loop.call_soon_threadsafe(self.queue.put_nowait, (i, *event))

        def on_token(token, logprobs):
            pieces = text.feed(token, logprobs)
            if pieces:
                send(pieces, None)
            return text.stopped

        def on_end(reason):
            send(text.finish(), reason)

        return Work(
            self.prompts[i], self.max_new, on_token, on_end, sampling_of(request, seed),
            frozenset() if request.ignore_eos else end_ids(self.served.tokenizer), request.presence_penalty or 0.0,
            request.frequency_penalty or 0.0, self.n_top is not None, deadline,
        )  # fmt: skip

    def start(self):
        """Into the queue. Raises ApiError 429 where it is full, 503 where the server is about to end."""
        if self.max_new == 0:
            for i in range(len(self.works)):
                self.queue.put_nowait((i, [], "length"))
            return
        try:
            self.served.scheduler.submit(*self.works)
        except QueueFull:
            raise busy(429, "too many requests are waiting; try again in a moment") from None
        except Closed:
            raise busy(503, "the server is being shut down") from None

    async def next(self):
        """(choice, pieces, why it ended or None): what has come since the last call, of one choice."""
        if not self.come:
            self.come.append(await self.queue.get())
            while not self.queue.empty():
                self.come.append(self.queue.get_nowait())
        i, pieces, reason = self.come.popleft()
        while reason is None and self.come and self.come[0][0] == i:  # for a slow reader in one go
            _, more, reason = self.come.popleft()
            pieces = pieces + more
        self.made[i] += len(pieces)
        if reason:
            self.unfinished -= 1
        if reason == "error":
            raise ApiError(500, "the model failed; the server's log says why", "model_error", kind="server_error")
        if reason in ("closed", "late") and not self.made[i]:
            why = "is being shut down" if reason == "closed" else "was too busy to begin in time"
            raise busy(503, f"the server {why}")
        return i, pieces, reason

    def cancel(self):
        for work in self.works:
            work.cancel()


def busy(status, message):
    return ApiError(status, message, "busy", kind="server_busy", headers={"Retry-After": "2"})


def sampling_of(request, seed):
    """The settings of one row; what nobody has set is a moderate temperature."""
    temperature = 0.7 if request.temperature is None else request.temperature
    return Sampling(
        temperature=0.0 if temperature < 1e-4 else temperature,
        top_k=request.top_k if request.top_k and request.top_k > 0 else None,
        top_p=None if request.top_p in (None, 1.0) else max(request.top_p, 1e-6),
        min_p=request.min_p or None, repetition_penalty=request.repetition_penalty or 1.0,
        generator=torch.Generator().manual_seed(seed % 2**64),
    )  # fmt: skip


def finish_reason(reason):
    return "stop" if reason == "stop" else "length"


async def unless_gone(request, coroutine):
    """The result of `coroutine`; it is given up, with ConnectionError, when the client hangs up."""

    async def hung_up():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(coroutine), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ConnectionError
    finally:
        for task in tasks:
            task.cancel()


class EventStream(StreamingResponse):
    """Server-sent events. However it ends, with its last word or with a client that leaves, the rows become free."""

    def __init__(self, events, answers):
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self.answers = answers

    async def __call__(self, scope, receive, send):
        try:
            async with asyncio.timeout(self.answers.seconds + SLOW):  # for one who does not read on
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            self.answers.cancel()


async def reply(request, answers, shapes, asked, notes, metrics):
    """Wait for the first token, then answer as a whole or as a stream. Errors until then have their own status."""
    begun, handed_on = time.monotonic(), False
    answers.start()
    try:
        first = await unless_gone(request, answers.next())
        metrics.first_token(time.monotonic() - begun)
        if asked.stream:
            with_usage, handed_on = bool(asked.stream_options and asked.stream_options.include_usage), True
            return EventStream(stream_of(answers, first, shapes, with_usage, notes, metrics), answers)
        return JSONResponse(await whole_of(request, answers, first, shapes, notes, metrics))
    except ConnectionError:  # nobody reads this
        return Response(status_code=499)
    finally:
        if not handed_on:
            answers.cancel()


async def whole_of(request, answers, event, shapes, notes, metrics):
    """The answer as one object, when all of its choices have ended."""
    pieces, reasons = [[] for _ in answers.works], [None] * len(answers.works)
    while True:
        i, more, reasons[i] = event
        pieces[i] += more
        if not answers.unfinished:
            break
        event = await unless_gone(request, answers.next())
    notes = notes + [LATE] * ("late" in reasons)
    usage = usage_of(answers.n_prompt, sum(answers.made))
    metrics.done(usage)
    made = [(some, finish_reason(reason), answers.n_top is not None) for some, reason in zip(pieces, reasons)]
    return shapes.whole(made, usage) | ({"notes": notes} if notes else {})


async def stream_of(answers, event, shapes, with_usage, notes, metrics):
    """The answer as lines of server-sent events. What is to be noted stands in the next chunk."""
    opened, notes = set(), list(notes)

    def line(choices, **more):
        noted = {"notes": notes[:]} if notes else {}
        notes.clear()
        return f"data: {json.dumps(shapes.chunk(choices, **noted, **more), ensure_ascii=False)}\n\n"

    try:
        while True:
            i, pieces, reason = event
            if i not in opened and (opening := shapes.opening(i)):
                yield line(opening)
            opened.add(i)
            if pieces:
                yield line(shapes.delta(i, pieces, answers.n_top is not None))
            if reason:
                notes += [LATE] * (reason == "late")
                yield line(shapes.ending(i, finish_reason(reason)))
            if not answers.unfinished:
                break
            event = await answers.next()
    except ApiError as error:  # too late for a status
        metrics.error(error.status)
        yield f"data: {json.dumps(error.body)}\n\n"
    else:
        metrics.done(usage_of(answers.n_prompt, sum(answers.made)))
    if with_usage:
        yield line([], usage=usage_of(answers.n_prompt, sum(answers.made)))
    yield "data: [DONE]\n\n"
