"""Continuous batching: many texts grow together in one key-value cache, and each comes and goes at any step.

    scheduler = Scheduler(model, n_rows=16)
    scheduler.start()                                     # a thread of its own
    scheduler.submit(Work(prompt, max_new=50, on_token=print))

A step of the model reads all of its weights, whether it then serves one row or sixteen: rows that share a step share
that cost. A text that is finished leaves at once, and the next one in the queue takes its row in the following step
(Yu et al. 2022, "Orca", section 3: iteration-level scheduling). The rows never know of each other: each has its own
settings, its own random numbers and its own part of the cache.

Shapes: B rows, V vocabulary.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from shared.generation import CachePass, KVCache, decode_step, last_logits, prefill
from shared.sampling import Sampling, sample

PIECE = 256  # tokens of a long prompt that are read in one step, so that the other rows do not wait for all of it
TOGETHER = 512  # tokens of short prompts, padding included, that are read in one step


class QueueFull(Exception):
    """So many texts wait that this one would have to wait too long."""


class Closed(Exception):
    """The scheduler takes no more work: it is about to end."""


@dataclass(eq=False)
class Work:
    """One text to be continued: what is asked for, and how far it is.

    The scheduler's thread calls `on_token(token, logprobs)` for each new token; a true answer means "that is enough".
    `logprobs` are the model's own log-probabilities [V], before any setting, or None unless `wants_logprobs`. At the
    end it calls `on_end(reason)` once: "stop" (a token of `end_ids`, or enough), "length" (`max_new` tokens, or the
    cache is full), "cancelled", "late" (after the deadline), "closed" or "error".
    """

    prompt: list
    max_new: int
    on_token: Callable = lambda token, logprobs: False
    on_end: Callable = lambda reason: None
    sampling: Sampling = Sampling()
    end_ids: frozenset = frozenset()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    wants_logprobs: bool = False
    deadline: float = math.inf  # of time.monotonic()
    n_read: int = 0  # tokens of the prompt that are in the cache
    new: list = field(default_factory=list)
    cancelled: bool = False

    def cancel(self):
        """Nobody waits for this text any more: its row becomes free in the next step. From any thread."""
        self.cancelled = True


class Scheduler:
    """Continues up to `n_rows` texts at a time with `model`; up to `max_waiting` more wait for a row.

    `max_tokens` is the room of a row, for prompt and answer (the context length, if that is less). Ids from `n_vocab`
    on are never drawn. `running[i]` is the work in row i of the cache: the rows in use are always the first ones.
    """

    def __init__(self, model, n_rows=16, max_tokens=None, max_waiting=64, n_vocab=None):
        self.model, self.max_waiting = model.eval(), max_waiting
        self.n_vocab = n_vocab or model.config.vocab_size
        self.cache, self.n_rows = KVCache(model, n_rows, max_tokens), n_rows
        self.running, self.waiting = [], deque()
        self.changed, self.closed = threading.Condition(), False
        self.thread = None
        self.n_steps = self.n_passes = self.n_tokens = 0  # a step is up to three passes through the model

    # --- what other threads call

    def submit(self, *works):
        """Put `works` into the queue, all of them or none. Returns at once.

        Raises QueueFull, Closed, or ValueError: a prompt without tokens or room or with unknown ids, `max_new` below 1.
        """
        for work in works:
            if not 1 <= len(work.prompt) <= self.cache.size:
                raise ValueError(f"the prompt has {len(work.prompt)} tokens; a row has room for 1 to {self.cache.size}")
            if not 0 <= min(work.prompt) <= max(work.prompt) < self.n_vocab:
                raise ValueError(f"the prompt holds an unknown token; the known ones are 0 to {self.n_vocab - 1}")
            if work.max_new < 1:
                raise ValueError(f"max_new is {work.max_new}; it must be at least 1")
            work.max_new = min(work.max_new, self.cache.size - len(work.prompt) + 1)  # the last one is not read
        with self.changed:
            if self.closed:
                raise Closed
            free = self.n_rows - len(self.running)
            if len(self.waiting) + len(works) > self.max_waiting + free:
                raise QueueFull
            self.waiting.extend(works)
            self.changed.notify()

    def start(self):
        """Work in a thread of its own, until `close`."""
        self.thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.thread.start()

    def drain(self, seconds):
        """Take no more work, send away who waits, and give the running texts `seconds` to end. Returns at once."""
        with self.changed:
            self.closed, sent_away = True, list(self.waiting)
            self.waiting.clear()
            for work in list(self.running):
                work.deadline = min(work.deadline, time.monotonic() + seconds)
            self.changed.notify()
        for work in sent_away:
            work.on_end("closed")

    def close(self, seconds=0.0):
        """`drain`, and wait until the thread has ended."""
        self.drain(seconds)
        if self.thread:
            self.thread.join()

    # --- the thread

    def _run(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.running or self.waiting or self.closed)
                if self.closed and not self.running:
                    return
            self.step()

    def step(self):
        """One round: rows become free and are taken, prompts are read, and each row gets its next token.

        What goes wrong in the model ends the texts that run, and is logged; the next ones have their chance.
        """
        try:
            self._leave()
            self._enter()
            self._read_prompts()
            self._decode()
            self.n_steps += 1
        except Exception:
            logging.getLogger("scheduler").exception("a step of the model failed")
            for row in reversed(range(len(self.running))):
                self._end(row, "error")

    def _leave(self):
        """Send away whose client has gone, or whose time is over."""
        now = time.monotonic()
        for row in reversed(range(len(self.running))):
            if reason := why_leave(self.running[row], now):
                self._end(row, reason)
        with self.changed:
            gone = [work for work in self.waiting if why_leave(work, now)]
            for work in gone:
                self.waiting.remove(work)
        for work in gone:
            work.on_end(why_leave(work, now))

    def _enter(self):
        """Who waits longest takes the next free row."""
        with self.changed:
            while self.waiting and len(self.running) < self.n_rows:
                self.running.append(self.waiting.popleft())

    def _end(self, row, reason):
        """Free a row. The last row in use moves into its place: then a step reads the cache without a copy."""
        work, last = self.running[row], len(self.running) - 1
        if row != last:
            move_row(self.cache, last, row)
            self.running[row] = self.running[last]
        self.cache.free(last)
        self.running.pop()
        work.on_end(reason)

    def _read_prompts(self):
        """Read short new prompts together, and one piece of a long one; who has read all gets the first token."""
        new = [row for row, work in enumerate(self.running) if work.n_read == 0 and len(work.prompt) <= PIECE]
        rows = fitting(new, [len(self.running[row].prompt) for row in new], TOGETHER)
        if rows:
            self.n_passes += 1
            logits = prefill(self.model, self.cache, rows, [list(self.running[row].prompt) for row in rows])
            for row in rows:
                self.running[row].n_read = len(self.running[row].prompt)
            self._choose(rows, logits)
        long = [row for row, work in enumerate(self.running) if work.n_read < len(work.prompt) > PIECE]
        if long:
            row = max(long, key=lambda row: self.running[row].n_read)  # the one that has begun, else the first
            logits = self._read_piece(row)
            if self.running[row].n_read == len(self.running[row].prompt):
                self._choose([row], logits)

    @torch.no_grad()
    def _read_piece(self, row):
        """Read the next tokens of a long prompt; logits of what follows them [1, V]."""
        work = self.running[row]
        piece = work.prompt[work.n_read : work.n_read + PIECE]
        self.n_passes += 1
        logits = last_logits(self.model, [piece], CachePass(self.cache, [row], len(piece)))
        self.cache.tokens[row] = self.cache.tokens[row] + piece
        work.n_read += len(piece)
        return logits

    def _decode(self):
        """One more token for each row whose prompt has been read."""
        rows = [row for row, work in enumerate(self.running) if work.new]
        if rows:
            tokens = [self.running[row].new[-1] for row in rows]
            self.n_passes += 1
            self._choose(rows, decode_step(self.model, self.cache, rows, tokens))

    def _choose(self, rows, logits):
        """Draw the next token of `rows` from `logits` [B, V], hand it over, and end the texts that are complete."""
        works = [self.running[row] for row in rows]
        logits = logits[:, : self.n_vocab].float().cpu()
        logprobs = logits.log_softmax(dim=-1) if any(work.wants_logprobs for work in works) else [None] * len(works)
        logits = penalize_presence(logits, works)
        seen = [work.prompt + work.new if work.sampling.repetition_penalty != 1 else [] for work in works]
        tokens = sample(logits, seen, [work.sampling for work in works])
        ended = []
        for row, work, token, logprob in zip(rows, works, tokens, logprobs, strict=True):
            if reason := self._hand_over(work, token, logprob):
                ended.append((row, reason))
        for row, reason in sorted(ended, reverse=True):  # from the last row on: `_end` moves only rows behind it
            self._end(row, reason)

    def _hand_over(self, work, token, logprobs):
        """Give a work its token; the reason if it ends with it, else None."""
        if token in work.end_ids:
            return "stop"
        work.new.append(token)
        self.n_tokens += 1
        if work.on_token(token, logprobs if work.wants_logprobs else None):
            return "stop"
        return "length" if len(work.new) >= work.max_new else None


def why_leave(work, now):
    """Why a work must not stay, or None."""
    return "cancelled" if work.cancelled else "late" if now > work.deadline else None


def fitting(rows, lengths, budget):
    """The first of `rows`, as many as can be read together: their number times the longest is at most `budget`."""
    longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i and longest * (i + 1) > budget:
            return rows[:i]
    return rows


def move_row(cache, source, target):
    """Put what row `source` of a KVCache holds into row `target`."""
    n = len(cache.tokens[source])
    for part in (cache.keys, cache.values):
        part[:, target, :, :n] = part[:, source, :, :n]
    cache.tokens[target] = cache.tokens[source]


def penalize_presence(logits, works):
    """Make tokens that an answer already holds less likely: logits [B, V] -> [B, V].

    A token that occurs n times loses n times the frequency penalty, and once the presence penalty (OpenAI's API).
    """
    if not any(work.presence_penalty or work.frequency_penalty for work in works):
        return logits
    logits = logits.clone()
    for row, work in zip(logits, works, strict=True):
        counts = Counter(work.new)
        ids, n = torch.tensor([*counts], dtype=torch.long), torch.tensor([*counts.values()])
        row[ids] -= work.presence_penalty + work.frequency_penalty * n
    return logits
