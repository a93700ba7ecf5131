"""Run every lesson in order: `python -m tools.run [--only LESSONS] [--jobs N] [--out DIR]`.

Each lesson runs in a kernel of its own at the scale of LLM_SCALE (quick unless told otherwise) and in the number format
of LLM_DTYPE. The executed copies go to build/, as notebooks and as web pages, beside index.html and report.json, which
are written after Ctrl-C too; the lessons themselves are left alone. The exit status is 1 if a lesson failed, 130 after
Ctrl-C.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path

from tools import notebooks, setup


def arguments_of(arguments):
    parser = argparse.ArgumentParser(prog="python -m tools.run", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="extend", nargs="+", metavar="LESSONS",
                        help="chapters (2), lessons (2.3) or patterns of the path ('02_attention/*', '*loading'); "
                             "several with commas or spaces between them")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run N lessons at a time (default: 1)")
    parser.add_argument("--out", default="build", metavar="DIR", help="where the results go (default: build)")
    parser.add_argument("--no-venv", action="store_true", help="stay in the Python that is running")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    if options.only is not None:
        options.only = [one.strip() for given in options.only for one in given.split(",")]
    return options


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
    own = f"; lesson 3.2 reads {os.environ['LLM_TEXT']} (LLM_TEXT)" if os.environ.get("LLM_TEXT") else ""
    return (f"bundled samples in place of {', '.join(samples)}" if samples else "the real files") + own


def write_copies(result, out):
    """The executed notebook and its page, under `out`; a page that cannot be made is no reason to lose the run."""
    from tools import pages

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


def report_on(results, **about):
    """What report.json holds and index.html shows."""
    rows = [{key: getattr(r, key) for key in ("name", "seconds", "peak_mb", "headline", "error", "cell")}
            for r in results]
    for row in rows:
        row["seconds"], row["peak_mb"] = round(row["seconds"], 2), round(row["peak_mb"], 1)
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return about | {"machine": machine(), "finished": now, "notebooks": rows}


def write_report(report, out):
    from tools import pages

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "index.html").write_text(pages.index_page(report), encoding="utf-8")


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = arguments_of(arguments)  # a misspelt option, a lesson that is not there: told before the set-up
    paths = notebooks.lessons() if options.only is None else notebooks.chosen(options.only)
    if not paths:
        raise SystemExit("there are no lessons here")
    setup.enter("tools.run", arguments)

    from shared import runtime
    from tools import execute

    try:
        scale, described = runtime.scale(), runtime.describe()
    except ValueError as error:
        raise SystemExit(error) from None
    out, data = Path(options.out), data_used()
    number_format = os.environ.get("LLM_DTYPE", "").strip() or "auto"
    print(f"{len(paths)} lessons, scale {scale}, number format {number_format}, data: {data}")
    print(described, end="\n\n", flush=True)
    width, numbers = max(len(notebooks.name_of(p)) for p in paths), {p: i for i, p in enumerate(paths, 1)}
    one_line, results = options.jobs == 1, []
    badge = out / notebooks.BADGE  # where the executed copies look for it
    badge.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(notebooks.ROOT / notebooks.BADGE, badge)

    def begin(path):
        if one_line:
            print(f"[{numbers[path]}/{len(paths)}] {notebooks.name_of(path):{width}}", end="", flush=True)

    def finish(result):
        write_copies(result, out)
        results.append(result)
        start = "" if one_line else f"[{numbers[result.path]}/{len(paths)}] {result.name:{width}}"
        print(f"{start}  {result.seconds:6.1f} s   {'FAILED' if result.error else result.headline}", flush=True)
        if result.error:
            print("\n" + failure_text(result) + "\n", flush=True)

    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    environment = {"LLM_SCALE": scale} | ({"OMP_NUM_THREADS": threads} if options.jobs > 1 else {})
    start, stopped = time.perf_counter(), False
    try:
        execute.run_all(paths, options.jobs, execute.CELL_SECONDS if scale == "quick" else None, environment,
                        begin, finish)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes no time
        stopped = True
    results.sort(key=lambda result: numbers[result.path])
    report = report_on(results, scale=scale, dtype=number_format, data=data, jobs=options.jobs, lessons=len(paths),
                       stopped=stopped, seconds=round(time.perf_counter() - start, 1))
    write_report(report, out)
    failed = sum(bool(r.error) for r in results)
    if stopped:
        print(f"\nstopped after {len(results)} of {len(paths)} lessons: {out / 'index.html'}", flush=True)
        os._exit(130)  # the threads that waited for a kernel, killed by now, need no farewell
    print(f"\n{table(results)}\n\n{report['machine']}\nexecuted copies: {out / 'index.html'}")
    print(f"{len(results) - failed} lessons passed, {failed} failed, {report['seconds']:.0f} seconds")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first lesson began
        sys.exit(130)
