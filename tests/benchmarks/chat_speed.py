"""What batching buys: `python -m tests.benchmarks.chat_speed [CHECKPOINT] [--clients N] [--rounds N]`.

Prompts of 32 tokens, 32 tokens of answer, greedy. Each round asks chat.py one request after another, then all clients
within one second; and a plain server, FastAPI with `generate` in each request, in the same two ways. Prints the medians
of the rounds with their range: tokens a second and, where answers are streamed, the time to the first token.
"""

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import requests

from shared.files import command_line
from shared.runtime import machine
from tests.benchmarks.chat_memory import CHAT, LOCAL, service

TOKENS = 32


def plain_server(checkpoint, port):
    """FastAPI and `generate`, and nothing else: what one writes first."""
    import uvicorn
    from fastapi import FastAPI

    from shared.checkpoints import COURSE_BASE, load_base
    from shared.generation import generate

    model, tokenizer = load_base(COURSE_BASE if checkpoint == "course_base" else checkpoint)
    app = FastAPI()

    @app.get("/health")
    def health():
        return {}

    @app.post("/v1/completions")
    def complete(asked: dict):
        new = generate(model, [asked["prompt"]], asked["max_tokens"])[0, len(asked["prompt"]) :]
        return {"text": tokenizer.decode(new.tolist())}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def ask(url, body):
    """(seconds to the first event with text, seconds to the end) of one request."""
    started, first = time.perf_counter(), None
    with requests.post(f"{url}/v1/completions", json=body, timeout=600, stream=True, proxies=LOCAL) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if first is None and line.startswith(b"data: {") and json.loads(line[6:])["choices"][0].get("text"):
                first = time.perf_counter() - started
    return first, time.perf_counter() - started


def crowd(url, bodies, threads, within):
    """Ask all, `threads` at a time, spread over `within` seconds: (tokens a second, [seconds to the first token])."""
    started = time.perf_counter()

    def late(i):
        time.sleep(max(0.0, started + within * i / len(bodies) - time.perf_counter()))
        return ask(url, bodies[i])

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(late, range(len(bodies))))
    return len(bodies) * TOKENS / (time.perf_counter() - started), [first for first, _ in found if first is not None]


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chat_speed", description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default="course_base")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)  # then this is the plain server
    arguments = parser.parse_args(argv)
    if arguments.port:
        return plain_server(arguments.checkpoint, arguments.port)
    plain = ["-m", "tests.benchmarks.chat_speed", arguments.checkpoint]
    ways = {"one after another": (1, 0.0), f"{arguments.clients} at once": (arguments.clients, 1.0)}
    found = {}
    with service([CHAT, arguments.checkpoint]) as (ours, _), service(plain) as (theirs, _):
        name = requests.get(f"{ours}/v1/models", timeout=30, proxies=LOCAL).json()["data"][0]["id"]
        draw = random.Random(0)
        bodies = [{"model": name, "prompt": [draw.randrange(300, 2000) for _ in range(TOKENS)], "max_tokens": TOKENS,
                   "temperature": 0, "ignore_eos": True, "stream": True} for _ in range(arguments.clients)]  # fmt: skip
        for url in (ours, theirs):
            ask(url, bodies[0])  # to warm up
        for _ in range(arguments.rounds):
            for server, url in (("chat.py", ours), ("plain", theirs)):
                for way, (threads, within) in ways.items():
                    found.setdefault((server, way), []).append(crowd(url, bodies, threads, within))
                    print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for (server, way), rounds in found.items():
        speeds = [speed for speed, _ in rounds]
        first = [1000 * percentile(times, 0.95 if "at once" in way else 0.5) for _, times in rounds if times]
        told = f", {statistics.median(first):5.0f} ms to the first token" if first else ""
        print(f"{server:8} {way:18} {statistics.median(speeds):6.1f} tokens/s "
              f"({min(speeds):.1f} to {max(speeds):.1f}){told}")  # fmt: skip
    print(f"first token: median one after another, 95th percentile at once; {arguments.rounds} rounds; {machine()}")


if __name__ == "__main__":
    command_line(main)
