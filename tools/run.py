"""Run lessons in order: `python -m tools.run [LESSONS] [--jobs N] [--out DIR]`; without LESSONS, all of them.

Each lesson runs in a kernel of its own at the scale of LLM_SCALE (quick unless told otherwise) and in the number format
of LLM_DTYPE. The executed copies go to build/, as notebooks and as web pages, beside report.json and index.html, which
names those of earlier runs too; the lessons themselves are left alone. The exit status is 1 if a lesson failed, 130
after Ctrl-C.
"""

import argparse
import contextlib
import io
import os
import platform
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from shared.files import command_line
from tools import index, notebooks, setup
from tools.notebooks import count
from tools.settings import check_settings


def arguments_of(arguments):
    parser = argparse.ArgumentParser(prog="python -m tools.run", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lessons", nargs="*", metavar="LESSONS",
                        help="chapters (2), lessons (2.3) or patterns of the path ('02_attention/*', '*loading'); "
                             "several with commas or spaces between them")
    parser.add_argument("--only", action="extend", nargs="+", default=[], metavar="LESSONS", help="the same")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run N lessons at a time (default: 1)")
    parser.add_argument("--out", default="build", metavar="DIR", help="where the results go (default: build)")
    parser.add_argument("--no-venv", action="store_true", help="stay in the Python that is running")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; it must be at least 1")
    options.only = [one.strip() for given in options.lessons + options.only for one in given.split(",")]
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


def data_asked_for(paths):
    """Names of the data sets that these lessons load by name."""
    from shared.data.registry import REGISTRY

    code = "\n".join(cell.source for path in paths for _, cell in notebooks.code_cells(notebooks.read(path)))
    named = set(re.findall(r"""\b(?:load|fetch|load_base)\(["']([\w-]+)["'][,)]""", code))
    named |= {name for names in re.findall(r"for name in \(([^)]*)\)", code) for name in re.findall(r'"(\w+)"', names)}
    named |= {"gpt2_vocab", "gpt2_encoder"} if re.search(r'load_tokenizer\(("gpt2")?\)', code) else set()
    return [name for name in REGISTRY if name in named]


def data_line(paths, finished=False):
    """Which data these lessons get: the real files that are here; for others they ask the network, or take samples."""
    from shared.data import places
    from shared.data.registry import REGISTRY

    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # a mirror that is not there is told for every data set
        found = {name: [place for _, place in places.places_of(REGISTRY[name])] for name in data_asked_for(paths)}
    if not finished:
        sys.stdout.writelines(dict.fromkeys(said.getvalue().splitlines(keepends=True)))
    here = {name: any(isinstance(p, Path) and p.is_file() for p in found[name]) for name in found}
    real, others = (", ".join(name for name in here if here[name] is kind) for kind in (True, False))
    ask = not finished and any(isinstance(place, str) for name in found for place in found[name])  # an address
    asked = "to be fetched, else bundled samples:" if ask else "bundled samples in place of"
    parts = [f"real files: {real}"] * bool(real) + [f"{asked} {others}"] * bool(others)
    if os.environ.get("LLM_TEXT") and any(notebooks.number_of(path) == "3.2" for path in paths):
        parts.append(f"lesson 3.2 reads {os.environ['LLM_TEXT']} (LLM_TEXT)")
    if (places.data_dir() / "my_chats").is_dir() and any(notebooks.number_of(path) == "5.6" for path in paths):
        parts.append("lesson 5.6 reads your chats in my_chats")
    return "; ".join(parts) or "none"


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


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    options = arguments_of(arguments)  # a misspelt option, a lesson that is not there: told before the set-up
    paths = notebooks.chosen(options.only) if options.only else notebooks.lessons()
    if not paths:
        raise SystemExit("there are no lessons here")
    setup.enter("tools.run", arguments)

    out, start = Path(options.out), time.perf_counter()
    results, about = [], {"lessons": len(paths), "jobs": options.jobs}

    def report(state):
        index.write_report(results, out, state=state, seconds=round(time.perf_counter() - start, 1), **about)

    if there := (out / "index.html").is_file():  # it speaks of another run, should this one end in its first second
        report("begun")

    from shared import runtime
    from tools import execute

    try:
        check_settings()
    except ValueError as error:
        if there:
            report(str(error))
        raise SystemExit(error) from None
    scale, described, data = runtime.scale(), runtime.describe(), data_line(paths)
    asked = os.environ.get("LLM_DTYPE", "").strip().lower() or "auto"
    chosen = str(runtime.autocast_dtype(runtime.get_device()) or "float32").removeprefix("torch.")
    about |= {"scale": scale, "number_format": chosen if asked == chosen else f"{chosen} ({asked})", "data": data,
              "machine": machine()}
    print(f"{count(len(paths), 'lesson')}, scale {scale}, number format {about['number_format']}")
    print(f"data: {data}\n{described}\n", flush=True)
    width, numbers = max(len(notebooks.name_of(p)) for p in paths), {p: i for i, p in enumerate(paths, 1)}
    one_line = options.jobs == 1
    badge = out / notebooks.BADGE  # where the executed copies look for it
    badge.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(notebooks.ROOT / notebooks.BADGE, badge)

    def begin(path):
        if one_line:
            print(f"[{numbers[path]}/{len(paths)}] {notebooks.name_of(path):{width}}", end="", flush=True)

    def finish(result):
        results.append(result)
        results.sort(key=lambda result: numbers[result.path])
        try:
            write_copies(result, out)
            report("begun")  # what is there counts, whatever ends the run
        except OSError as error:
            result.error = result.error or f"its copy could not be written: {error}"
        start = "" if one_line else f"[{numbers[result.path]}/{len(paths)}] {result.name:{width}}"
        print(f"{start}  {result.seconds:6.1f} s   {'FAILED' if result.error else result.headline}", flush=True)
        if result.error:
            print("\n" + failure_text(result) + "\n", flush=True)

    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    environment = {"LLM_SCALE": scale} | ({"OMP_NUM_THREADS": threads} if options.jobs > 1 else {})
    try:
        execute.run_all(paths, options.jobs, execute.CELL_SECONDS if scale == "quick" else None, environment,
                        begin, finish)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes no time
        report("stopped")
        print(f"\nstopped after {len(results)} of {len(paths)} lessons: {out / 'index.html'}", flush=True)
        os._exit(130)  # the threads that waited for a kernel, killed by now, need no farewell
    about["data"] = data_line(paths, finished=True)
    failed, seconds = sum(bool(r.error) for r in results), time.perf_counter() - start
    print(f"\n{table(results)}\n\n{about['machine']}\nexecuted copies: {out / 'index.html'}")
    print(f"{count(len(results) - failed, 'lesson')} passed, {failed} failed, {seconds:.0f} seconds")
    report("finished")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        command_line(main)
    except KeyboardInterrupt:  # before the first lesson began
        sys.exit(130)
    except OSError as error:  # of the folder for the results
        sys.exit(str(error))
