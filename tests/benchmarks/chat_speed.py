"""What batching buys: `python -m tests.benchmarks.chat_speed [CHECKPOINT] [--clients N] [--rounds N] [--peers]`.

Prompts of 32 tokens, 32 tokens of answer, greedy, float32. Each round asks chat.py one request after another, then all
clients within one second; and a plain server, FastAPI with `generate` in each request, in the same two ways; with
--peers also `transformers serve`, plain and with its continuous batching, and llama.cpp's server, on files that the
course writes. Prints the medians of the rounds with their range: tokens a second and, where answers are streamed, the
time to the first token.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import requests

from shared import data
from shared.checkpoints import COURSE_BASE, load_base, save_gguf, save_model
from shared.files import command_line
from shared.runtime import machine
from tests.benchmarks.chat_memory import CHAT, LOCAL, service

TOKENS = 32
TRANSFORMERS = ["-c", "from transformers.cli.transformers import main; main()", "serve"]


def load(checkpoint):
    return load_base(COURSE_BASE if checkpoint == "course_base" else checkpoint)


def plain_server(checkpoint, port):
    """FastAPI and `generate`, and nothing else: what one writes first."""
    import uvicorn
    from fastapi import FastAPI

    from shared.generation import generate

    model, tokenizer = load(checkpoint)
    app = FastAPI()

    @app.get("/health")
    def health():
        return {}

    @app.post("/v1/completions")
    def complete(asked: dict):
        new = generate(model, [asked["prompt"]], asked["max_tokens"])[0, len(asked["prompt"]) :]
        return {"text": tokenizer.decode(new.tolist())}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def llama_server(file, port, clients):
    """llama.cpp's own server on a GGUF file, with a place for each client."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.hostnames, settings.port = file, ["127.0.0.1"], port
    settings.n_parallel, settings.n_ctx = clients, 1024 * clients
    server = xllamacpp.Server(settings)
    while server:
        time.sleep(1)


def ask(url, body):
    """(seconds to the first event with text or None, tokens made) of one request."""
    started, first, made = time.perf_counter(), None, TOKENS
    with requests.post(f"{url}/v1/completions", json=body, timeout=600, stream=True, proxies=LOCAL) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if first is None and event["choices"] and event["choices"][0].get("text"):
                first = time.perf_counter() - started
            made = (event.get("usage") or {}).get("completion_tokens") or made  # transformers may end an answer early
    return first, made


def crowd(url, bodies, threads, within):
    """Ask all, `threads` at a time, spread over `within` seconds: (tokens a second, [seconds to the first token])."""
    started = time.perf_counter()

    def late(i):
        time.sleep(max(0.0, started + within * i / len(bodies) - time.perf_counter()))
        return ask(url, bodies[i])

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(late, range(len(bodies))))
    made = sum(tokens for _, tokens in found)
    return made / (time.perf_counter() - started), [first for first, _ in found if first is not None]


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


@contextlib.contextmanager
def servers(checkpoint, clients, peers):
    """{name: (address, model's name, whether it takes token ids)} of the servers, which run until the block ends."""
    with contextlib.ExitStack() as stack:
        def start(*arguments):
            return stack.enter_context(service([str(a) for a in arguments]))[0]

        this = ("-m", "tests.benchmarks.chat_speed")
        url = start(CHAT, checkpoint, "--dtype", "float32")
        ours = requests.get(f"{url}/v1/models", timeout=30, proxies=LOCAL).json()["data"][0]["id"]
        found = {"chat.py": (url, ours, True), "plain": (start(*this, checkpoint), ours, True)}
        if peers:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model, tokenizer = load(checkpoint)
            save_model(model, tokenizer, folder)
            save_gguf(model, tokenizer, f"{folder}/model.gguf")
            del model
            serve = (*TRANSFORMERS, folder, "--device", "cpu", "--dtype", "float32")
            found["transformers serve"] = start(*serve), folder, False
            found["the same, batching"] = start(*serve, "--continuous-batching"), folder, False
            found["llama.cpp"] = start(*this, f"{folder}/model.gguf", "--clients", clients), "model", True
        yield found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chat_speed", description=__doc__.split(":")[0])
    parser.add_argument("checkpoint", nargs="?", default="course_base")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="also transformers' and llama.cpp's servers")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)  # then this is the plain server, or llama.cpp's
    arguments = parser.parse_args(argv)
    if arguments.port and arguments.checkpoint.endswith("model.gguf"):
        return llama_server(arguments.checkpoint, arguments.port, arguments.clients)
    if arguments.port:
        return plain_server(arguments.checkpoint, arguments.port)
    ways = {"one after another": (1, 0.0), f"{arguments.clients} at once": (arguments.clients, 1.0)}
    found, story = {}, (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
    tokenizer = load(arguments.checkpoint)[1]
    ids = tokenizer.encode_ordinary(story)[: arguments.clients * TOKENS]
    prompts = [ids[i : i + TOKENS] for i in range(0, len(ids), TOKENS)]
    with servers(arguments.checkpoint, arguments.clients, arguments.peers) as running:
        bodies = {name: [{"model": model, "prompt": prompt if takes_ids else tokenizer.decode(prompt), "stream": True,
                          "max_tokens": TOKENS, "temperature": 0} | ({"ignore_eos": True} if takes_ids else {})
                         for prompt in prompts] for name, (_, model, takes_ids) in running.items()}  # fmt: skip
        for name, (url, *_) in running.items():
            ask(url, bodies[name][0])  # to warm up
        for _ in range(arguments.rounds):
            for name, (url, *_) in running.items():
                for way, (threads, within) in ways.items():
                    found.setdefault((name, way), []).append(crowd(url, bodies[name], threads, within))
                    print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for (server, way), rounds in found.items():
        speeds = [speed for speed, _ in rounds]
        first = [1000 * percentile(times, 0.95 if "at once" in way else 0.5) for _, times in rounds if times]
        told = f", {statistics.median(first):5.0f} ms to the first token" if first else ""
        print(f"{server:18} {way:18} {statistics.median(speeds):6.1f} tokens/s "
              f"({min(speeds):.1f} to {max(speeds):.1f}){told}")  # fmt: skip
    print(f"first token: median one after another, 95th percentile at once; {arguments.rounds} rounds; {machine()}")


if __name__ == "__main__":
    command_line(main)
