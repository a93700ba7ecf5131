"""SmolLM2 beside its peers: do the tokens agree with llama.cpp, and how fast is each?

    python -m tests.benchmarks.smollm2 [--rounds N]

Agreement: 64 greedy tokens on five prompts, from the same numbers written in float32 and from the published 4-bit file,
where llama.cpp rounds activations to 8 bits as well.
Speed: new tokens per second for one text and for eight; `transformers` reads the folder that `save_model` writes. The
bound is what the memory allows: bytes per second of a matrix-vector product by the bytes of all weights. Needs
tests/requirements.txt (llama.cpp comes as the package xllamacpp). Numbers depend on the machine.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import torch

from shared import data
from shared.checkpoints import load_gguf, save_gguf, save_model
from shared.generation import generate

PROMPTS = ("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
           "<|im_start|>user\nTell me a story about a lamp.<|im_end|>\n<|im_start|>assistant\n",
           "The sea was calm that morning, and", "In 1912, the", "Water boils when")  # fmt: skip
NEW = 48  # tokens of each text in a measured run


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bandwidth():
    """Bytes of a large matrix that one product with a vector reads in a second."""
    large, vector = torch.randn(16384, 4096), torch.randn(4096)
    return 4 * large.numel() / min(seconds(lambda: large @ vector) for _ in range(5))


class LlamaCpp:
    """llama.cpp's server on `file`, asked over HTTP for greedy tokens; `threads` as PyTorch has."""

    def __init__(self, file, n_texts):
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_parallel = str(file), n_texts
        settings.n_ctx, settings.warmup = 1024 * n_texts, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
        self.server = xllamacpp.Server(settings)

    def tokens(self, ids, n, stop=True):
        body = {"prompt": ids, "n_predict": n, "temperature": 0, "return_tokens": True, "cache_prompt": False,
                "ignore_eos": not stop}  # fmt: skip
        answer = requests.post(f"{self.server.listening_address}/completion", json=body, timeout=300)
        return answer.json()["tokens"]


def agreement(model, encoding, server):
    """Print, for each prompt, after how many of at most 64 tokens the two part."""
    same = total = 0
    for prompt in PROMPTS:
        ids = encoding.encode(prompt, allowed_special="all")
        ours = generate(model, [ids], 64, eos_id=2)[0, len(ids) :].tolist()
        theirs = server.tokens(ids, 64)
        ours = ours[:-1] if ours[-1] == 2 else ours  # the server leaves the last mark out
        theirs = theirs[:-1] if theirs and theirs[-1] == 2 else theirs
        n = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        together = n == len(ours) == len(theirs)
        print(f"  {prompt[:40]!r:44} {'the same' if together else 'parts after'} {n} of {len(ours)} tokens")
        same, total = same + n, total + len(ours)
    print(f"  before the first difference: {same} of {total} tokens ({same / total:.0%})")


def variants(file, folder, model, ids):
    """{name: (bytes of a weight, function(texts) that makes NEW tokens for that many texts)}."""
    found, n_weights = {}, sum(p.numel() for p in model.parameters())
    for dtype in (torch.float32, torch.bfloat16):
        name, ours = str(dtype).removeprefix("torch."), load_gguf(file)[0].to(dtype)
        found[f"this course, {name}"] = dtype.itemsize, lambda n, ours=ours: generate(ours, [ids] * n, NEW)
        if importlib.util.find_spec("transformers"):
            from transformers import AutoModelForCausalLM

            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

            @torch.no_grad()
            def work(n, theirs=theirs):
                x = torch.tensor([ids] * n)
                theirs.generate(x, attention_mask=torch.ones_like(x), min_new_tokens=NEW, max_new_tokens=NEW,
                                do_sample=False)  # fmt: skip

            found[f"transformers, {name}"] = dtype.itemsize, work
    if importlib.util.find_spec("xllamacpp"):
        for name, path in (("float32", folder / "ours.gguf"), ("the 4-bit file", file)):
            server = LlamaCpp(path, 8)

            def work(n, server=server):
                with ThreadPoolExecutor(n) as pool:
                    told = list(pool.map(lambda _: server.tokens(ids, NEW, stop=False), range(n)))
                assert all(len(tokens) >= NEW - 1 for tokens in told), [len(tokens) for tokens in told]

            found[f"llama.cpp, {name}"] = path.stat().st_size / n_weights, work
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    file = data.fetch("smollm2")
    model, encoding = load_gguf(file)
    ids, n_weights = encoding.encode(PROMPTS[1], allowed_special="all"), sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        save_model(model, encoding, folder)
        save_gguf(model, encoding, folder / "ours.gguf")
        for path in (folder / "ours.gguf", file) if importlib.util.find_spec("xllamacpp") else ():
            print(f"Agreement with llama.cpp on {path.name}:")
            agreement(model, encoding, LlamaCpp(path, 1))
        works = variants(file, folder, model, ids)
        moved, found = bandwidth(), {}
        for _ in range(args.rounds):
            for name, (_, work) in works.items():
                for n in (1, 8):
                    found.setdefault((name, n), []).append(NEW * n / seconds(lambda work=work, n=n: work(n)))
        print(f"\n| tokens/s, median of {args.rounds} | one text | bound | eight texts |\n|---|---:|---:|---:|")
        for name, (size, _) in works.items():
            one, eight = (statistics.median(found[name, n]) for n in (1, 8))
            print(f"| {name} | {one:.1f} | {moved / (size * n_weights):.0f} | {eight:.1f} |")
    print(f"\n{file.name}; the memory delivers {moved / 1e9:.1f} GB/s; {platform.processor() or platform.machine()}, "
          f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
