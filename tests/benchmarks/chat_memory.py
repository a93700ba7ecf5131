"""Does the chat service's memory grow? `python -m tests.benchmarks.chat_memory [CHECKPOINT] [--requests N]`.

Starts chat.py and asks it for one token, again and again: four clients, every other answer as a stream, prompts of many
lengths. Prints the service's resident memory after each tenth of the requests, and how much it grew from the first
tenth on. The exit status is 1 where that is more than 5 %, or where a request was refused.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import requests

from shared.files import command_line

ROOT = Path(__file__).resolve().parents[2]
CHAT = "05_instruction_finetune/chat.py"
CLIENTS, MOST, WORDS = 4, 5.0, 40  # MOST: per cent
LOCAL = {"http": None, "https": None}  # no proxy


@contextlib.contextmanager
def service(arguments):
    """Run Python with these arguments and `--port` as a server: gives (its address, its psutil.Process)."""
    with socket.socket() as one, tempfile.TemporaryDirectory() as folder:
        one.bind(("127.0.0.1", 0))
        port, log = one.getsockname()[1], Path(folder) / "log"
        one.close()
        with log.open("wb") as out:
            command, environment = [sys.executable, *arguments, "--port", str(port)], os.environ | {"LLM_DEVICE": "cpu"}
            server = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment)
        try:
            wait_for(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait(30)


def wait_for(server, url, log):
    for _ in range(1200):
        if server.poll() is not None:
            raise RuntimeError(f"the service ended: {log.read_text()}")
        try:
            answer = requests.get(f"{url}/health", timeout=5, proxies=LOCAL)
            if answer.status_code != 503:  # which llama.cpp says while it loads
                return answer.raise_for_status()
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service did not start within two minutes")


def ask(session, url, model, i):
    """One request for one token; its status, when the answer is complete."""
    messages = [{"role": "user", "content": f"{i} " + "word " * (i % WORDS)}]
    body = {"model": model, "messages": messages, "max_tokens": 1, "stream": bool(i % 2), "seed": i}
    return session.post(f"{url}/v1/chat/completions", json=body, timeout=120, proxies=LOCAL).status_code


def ask_many(url, model, numbers):
    with requests.Session() as session:
        return [ask(session, url, model, i) for i in numbers]


def measure(url, process, n):
    """[(requests so far, MB)] after each tenth of `n` requests. Raises RuntimeError where one was refused."""
    model = requests.get(f"{url}/v1/models", timeout=30, proxies=LOCAL).json()["data"][0]["id"]
    found, step = [], n // 10
    with ThreadPoolExecutor(CLIENTS) as pool:
        for start in range(0, step * 10, step):
            parts = [range(start + client, start + step, CLIENTS) for client in range(CLIENTS)]
            statuses = [status for part in pool.map(lambda part: ask_many(url, model, part), parts) for status in part]
            if wrong := [status for status in statuses if status != 200]:
                raise RuntimeError(f"{len(wrong)} requests were answered with {sorted({*wrong})}")
            found.append((start + step, process.memory_info().rss / 2**20))
            print(f"{found[-1][0]:6} requests  {found[-1][1]:8.1f} MB", flush=True)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.chat_memory", description=__doc__.split("?")[0])
    parser.add_argument("checkpoint", nargs="?", default="course_base")
    parser.add_argument("--requests", type=int, default=10_000)
    arguments = parser.parse_args(argv)
    if arguments.requests < 10:
        parser.error("--requests must be at least 10")
    with service([CHAT, arguments.checkpoint]) as (url, process):
        found = measure(url, process, arguments.requests)
    growth = 100 * (found[-1][1] / found[0][1] - 1)
    print(f"from request {found[0][0]:,} to {found[-1][0]:,}: {growth:+.1f} %")
    return int(growth > MOST)


if __name__ == "__main__":
    command_line(main)
