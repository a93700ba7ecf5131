"""For the tests of the chat service: a model that says what a test wants, and a real server in this process."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import torch
import uvicorn
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "05_instruction_finetune"))

import chat  # noqa: E402

from shared import data  # noqa: E402
from shared.checkpoints import load_gguf  # noqa: E402
from shared.llama import LlamaConfig  # noqa: E402

STAND_IN = data.places.SAMPLES / "smollm2-tiny.gguf"


class Scripted(nn.Module):
    """A model, for the scheduler, that answers every conversation in ChatML with `text`; each step takes `pause` s.

    After a dozen tokens it waits until the event `go_on` is set.
    The next token of the text has logit 10, the one after next 9, all others 0: what a test may choose instead.
    """

    def __init__(self, tokenizer, text, pause=0.0, context_length=512):
        super().__init__()
        self.config = LlamaConfig(tokenizer.n_vocab, context_length, 4, 1, 1, 1, 4)
        self.token_embedding, self.head = nn.Embedding(1, 1), nn.Identity()
        self.tokenizer, self.pause = tokenizer, pause
        self.opening = [1, *tokenizer.encode_ordinary("assistant\n")]
        self.text = text
        self.go_on = threading.Event()
        self.go_on.set()

    def said(self, ids):
        """How many tokens of an answer stand at the end of `ids`."""
        n = len(self.opening)
        places = [i for i in range(len(ids) - n + 1) if ids[i : i + n] == self.opening]
        return len(ids) - places[-1] - n if places else len(ids)

    def hidden(self, tokens, cache):
        time.sleep(self.pause)
        end = self.tokenizer.end_of_turn
        script = self.tokenizer.encode_ordinary(self.text) + [end, end]
        logits = torch.zeros(*tokens.shape, self.config.vocab_size)
        for b, row in enumerate(cache.rows.tolist()):
            ids = cache.cache.tokens[row] + tokens[b].tolist()
            for t in range(tokens.shape[1]):
                n = self.said(ids[: len(cache.cache.tokens[row]) + t + 1])
                if n == 12 and tokens.shape[1] == 1:
                    self.go_on.wait(120)
                logits[b, t, script[min(n + 1, len(script) - 1)]] = 9
                logits[b, t, script[min(n, len(script) - 1)]] = 10
        return logits


def stand_in():
    """(model, tokenizer) of SmolLM2's bundled stand-in."""
    return load_gguf(STAND_IN)


@contextlib.contextmanager
def running(app):
    """The address of a server for `app`, on a free port of this machine."""
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="error", timeout_graceful_shutdown=2)
    server = chat.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(400):
        if server.started:
            break
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
