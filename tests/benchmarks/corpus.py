"""Speed and memory of the corpus pipeline: `python -m tests.benchmarks.corpus [--size 200MB] [--workers 2]`.

The text is synthetic: words by Zipf's law from a made-up vocabulary, documents of 300 to 1,500 words, as .jsonl.zst.
First tokenizing alone, tiktoken's own threads beside the pipeline's processes, in turn; then the pipeline as a command
in a process of its own, with the time of each stage and the peak of memory. The last line names the machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zstandard

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "03_gpt"))

import prepare_corpus as pipeline  # noqa: E402

from shared.tokenizer import load_tokenizer  # noqa: E402
from tools.execute import peak_megabytes  # noqa: E402

FILE_BYTES = 50_000_000
ROUNDS = 3


def make_vocabulary(rng, size=20_000):
    """Words made of syllables, the shorter ones first, with capital letters and punctuation here and there."""
    syllables = [c + v for c in "b c d f g h k l m n p r s t v w st tr ch".split() for v in "a e i o u ea".split()]
    words = {"".join(rng.choice(syllables, 1 + i * 4 // size)) for i in range(3 * size)}
    words = sorted(words, key=lambda word: (len(word), word))[:size]
    return [word + ("." if i % 15 == 14 else "," if i % 22 == 21 else "") for i, word in enumerate(words)]


def make_files(folder, size, seed=0):
    """Write about `size` bytes of text as .jsonl.zst files of about 50 MB of text each."""
    rng = np.random.default_rng(seed)
    words = np.array(make_vocabulary(rng), dtype=object)
    chances = 1 / (np.arange(len(words)) + 10)
    cumulated = np.cumsum(chances / chances.sum())
    written = 0
    for number in range(max(1, round(size / FILE_BYTES))):
        with zstandard.open(folder / f"synthetic_{number:03d}.jsonl.zst", "wb") as file:
            end = min(size, written + FILE_BYTES)
            while written < end:
                drawn = words[np.searchsorted(cumulated, rng.random(100_000)).clip(0, len(words) - 1)]
                start = 0
                while start < len(drawn):
                    text = " ".join(drawn[start : (start := start + int(rng.integers(300, 1500)))])
                    file.write(json.dumps({"text": text}).encode() + b"\n")
                    written += len(text)


def compare_tokenizing(folder, workers):
    """(MB, seconds of tiktoken's threads, seconds of the pipeline's processes) on the first file, medians of rounds."""
    file = pipeline.find_files([str(folder)])[0][0]
    encoding = load_tokenizer()
    texts = [json.loads(record)["text"] for record in pipeline.read_records(file.path)]
    size = sum(len(text.encode()) for text in texts)
    theirs, ours = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for i in range(0, len(texts), 1000):
            encoding.encode_ordinary_batch(texts[i : i + 1000], num_threads=workers)
        theirs.append(time.perf_counter() - began)
        clock = []
        results = pipeline.process(work_items(file, texts, workers, clock), None, encoding, workers, tokenize_only)
        documents = sum(len(result) for _, result in results)
        ours.append(time.perf_counter() - clock[0])
        assert documents == len(texts)
    return size / 1e6, statistics.median(theirs), statistics.median(ours)


def work_items(file, texts, workers, clock):
    """Batches for `tokenize_only`: first some that give all processes the time to start, then those that count."""
    for _ in range(4 * workers):
        yield pipeline.Batch(0, file, 0, [])
    clock.append(time.perf_counter())
    for i in range(0, len(texts), 250):
        yield pipeline.Batch(0, file, i, texts[i : i + 250])


def tokenize_only(texts, group):
    """What a worker does for the comparison."""
    if not texts:
        time.sleep(0.5)
    return [pipeline.tokenize(text, pipeline._worker["encoding"]) for text in texts]


def run_and_watch(command):
    """Run it: (seconds, peak memory of the process in MB, sum of the peaks of its children); Linux only, else zeros."""
    began, peaks = time.perf_counter(), {}
    with tempfile.TemporaryFile("w+") as output:
        run = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while run.poll() is None:
            time.sleep(0.1)
            for pid in [run.pid, *children_of(run.pid)]:
                peaks[pid] = max(peaks.get(pid, 0), peak_megabytes(pid))
        wall = time.perf_counter() - began
        if run.returncode:
            output.seek(0)
            sys.exit(output.read())
    own = peaks.pop(run.pid, 0)
    return wall, own, sum(peaks.values())


def children_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=pipeline.size_in_bytes, default="200MB")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        (folder / "in").mkdir()
        make_files(folder / "in", args.size)
        size, theirs, ours = compare_tokenizing(folder / "in", args.workers)
        print(f"tokenizing alone, {size:.0f} MB, {args.workers} at once:")
        print(f"  tiktoken.encode_ordinary_batch {size / theirs:6.1f} MB/s")
        print(f"  this pipeline's processes      {size / ours:6.1f} MB/s   {theirs / ours:.2f}x")

        call = ["--source", str(folder / "in"), "--out", str(folder / "out"), "--workers", str(args.workers)]
        wall, own, others = run_and_watch([sys.executable, "03_gpt/prepare_corpus.py", *call])
        report = json.loads((folder / "out" / "report.json").read_text())
        counts = report["sources"]["synthetic"]
        text = counts["bytes read"] / 1e6
        print(f"the whole pipeline, {text:,.0f} MB of text, {counts['kept']:,} of {counts['records']:,} records kept:")
        print(f"  {text / wall:6.1f} MB/s on the clock, with the start of the processes ({wall:.0f} s)")
        for stage, seconds in sorted(report["seconds"].items()):
            where = "main process" if stage in ("read", "find duplicates and write") else "one worker"
            print(f"  {stage:26} {text / seconds:7.1f} MB/s in the {where}")
        print(f"  peak memory {own + others:.0f} MB: main process {own:.0f}, {args.workers} workers {others:.0f}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
