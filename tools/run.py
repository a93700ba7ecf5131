"""Run every lesson in order: `python -m tools.run [--only GLOB] [--jobs N] [--out DIR]`.

Each lesson runs in a kernel of its own at the scale of LLM_SCALE (quick unless told otherwise). The executed copies go
to build/, as notebooks and as web pages, beside index.html and report.json; the lessons themselves are left alone.
The exit status is 1 if a lesson failed.
"""

import argparse
import datetime
import fnmatch
import json
import os
import platform
import sys
import time
from pathlib import Path

from tools import setup


def arguments_of(arguments):
    parser = argparse.ArgumentParser(prog="python -m tools.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GLOB", help="only the lessons whose name fits, such as '02_*' or '*loading'")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run N lessons at a time (default: 1)")
    parser.add_argument("--out", default="build", metavar="DIR", help="where the results go (default: build)")
    parser.add_argument("--no-venv", action="store_true", help="stay in the Python that is running")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    return options


def chosen(paths, pattern, name_of):
    """The lessons whose name (`02_attention/01_...`) or parts of it fit the pattern; all if there is none."""
    if not pattern:
        return paths
    fits = [p for p in paths if any(fnmatch.fnmatch(part, pattern.removesuffix(".ipynb"))
                                    for part in (name_of(p), p.stem, p.parent.name))]
    if not fits:
        raise SystemExit(f"no lesson fits --only {pattern!r}; there are: {', '.join(name_of(p) for p in paths)}")
    return fits


def machine():
    """One line about where this ran."""
    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    memory = psutil.virtual_memory().total / 2**30
    return (f"{cpu}, {os.cpu_count()} logical cores{gpu}, {memory:.0f} GiB, {platform.system()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}")


def data_used(names=("the_verdict", "gpt2_vocab")):
    """Which data the lessons get here: the real files, or bundled samples in their place."""
    from shared import data

    samples = []
    for name in names:
        try:
            if data.places.is_sample(data.fetch(name)):
                samples.append(name)
        except OSError as error:
            return str(error).splitlines()[0].rstrip(":")
    return f"bundled samples in place of {', '.join(samples)}" if samples else "the real files"


def write_copies(result, out):
    """The executed notebook and its page, under `out`; a page that cannot be made is no reason to lose the run."""
    from tools import notebooks, pages

    base = Path(out) / result.path.parent.name / result.path.stem
    base.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write(result.notebook, base.with_suffix(".ipynb"))
    base.with_suffix(".html").write_text(pages.notebook_page(result.notebook, result.path), encoding="utf-8")


def failure_text(result):
    """A failed lesson for the terminal: the error, the cell's source, the end of the traceback."""
    place = "" if result.cell is None else f", cell {result.cell}"
    parts = [f"FAILED {result.name}{place}: {result.error}"]
    if result.source:
        parts += ["the cell:", *("    " + line for line in result.source.splitlines())]
    if result.trace:
        parts += ["the traceback:", *("    " + line for line in result.trace.splitlines())]
    return "\n".join(parts)


def shorten(text, width):
    return text if len(text) <= width else text[:width - 3] + "..."


def table(results):
    """The closing table."""
    width = max(len(r.name) for r in results)
    rows = [f"{'lesson':{width}}  seconds  peak MB  result"]
    for r in results:
        said = f"FAILED: {r.error}" if r.error else r.headline
        rows.append(f"{r.name:{width}}  {r.seconds:7.1f}  {r.peak_mb:7.0f}  {shorten(said, 80)}".rstrip())
    return "\n".join(rows)


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = arguments_of(arguments)  # a misspelt option is told before the set-up
    setup.enter("tools.run", arguments)

    from shared import runtime
    from tools import execute, notebooks, pages

    try:
        scale = runtime.scale()
    except ValueError as error:
        raise SystemExit(error) from None
    paths = chosen(notebooks.lessons(), options.only, notebooks.name_of)
    if not paths:
        raise SystemExit("there are no lessons here")
    out, data = Path(options.out), data_used()
    print(f"{len(paths)} lessons, scale {scale}, data: {data}\n", flush=True)
    width, numbers = max(len(notebooks.name_of(p)) for p in paths), {p: i for i, p in enumerate(paths, 1)}
    one_line = options.jobs == 1

    def begin(path):
        if one_line:
            print(f"[{numbers[path]}/{len(paths)}] {notebooks.name_of(path):{width}}", end="", flush=True)

    def finish(result):
        write_copies(result, out)
        start = "" if one_line else f"[{numbers[result.path]}/{len(paths)}] {result.name:{width}}"
        print(f"{start}  {result.seconds:6.1f} s   {'FAILED' if result.error else result.headline}", flush=True)
        if result.error:
            print("\n" + failure_text(result) + "\n", flush=True)

    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    environment = {"LLM_SCALE": scale} | ({"OMP_NUM_THREADS": threads} if options.jobs > 1 else {})
    start = time.perf_counter()
    try:
        results = execute.run_all(paths, options.jobs, execute.CELL_SECONDS if scale == "quick" else None, environment,
                                  begin, finish)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is in " + str(out), flush=True)
        os._exit(130)
    report = {
        "scale": scale, "data": data, "machine": machine(), "seconds": round(time.perf_counter() - start, 1),
        "finished": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"), "jobs": options.jobs,
        "notebooks": [{key: getattr(r, key) for key in ("name", "seconds", "peak_mb", "headline", "error", "cell")}
                      for r in results],
    }
    for entry in report["notebooks"]:
        entry["seconds"], entry["peak_mb"] = round(entry["seconds"], 2), round(entry["peak_mb"], 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "index.html").write_text(pages.index_page(report), encoding="utf-8")
    failed = sum(bool(r.error) for r in results)
    print(f"\n{table(results)}\n\n{report['machine']}\nexecuted copies: {out / 'index.html'}")
    print(f"{len(results) - failed} lessons passed, {failed} failed, {report['seconds']:.0f} seconds")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
