"""Notebooks run from top to bottom, each in a kernel and folder of its own: time, peak memory, what went wrong."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path

import ipykernel.kernelspec
import psutil
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from tools import notebooks

CELL_SECONDS = 600  # one cell at quick scale; at full scale there is no limit


class ThisPython(KernelSpecManager):
    """Kernels run in the Python that runs the tool, whatever kernels are registered on the machine."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict())


@dataclass
class Result:
    """What one run of a notebook gave."""

    path: Path
    notebook: object = None  # with its outputs
    seconds: float = 0.0
    peak_mb: float = 0.0  # of the kernel process
    headline: str = ""
    error: str = ""  # "" when all went well, else one line
    cell: int | None = None  # number of the failing cell
    source: str = ""  # of the failing cell
    trace: str = ""  # the last lines of its traceback

    @property
    def name(self):
        return notebooks.name_of(self.path)


def peak_megabytes(pid):
    """Peak memory of a living process in MB: exact on Linux and Windows, the present value on macOS; 0 if unknown."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0.0
    return getattr(memory, "peak_wset", memory.rss) / 1e6


def headline_of(notebook):
    """The last line printed by cells tagged `headline`; "" if there is none."""
    lines = [""]
    for _, cell in notebooks.code_cells(notebook):
        if "headline" in notebooks.tags(cell):
            for output in cell.outputs:
                text = output.get("text") or output.get("data", {}).get("text/plain", "")
                lines += [line for line in notebooks.without_colours(text).splitlines() if line.strip()]
    return lines[-1].strip()


def run_notebook(path, cell_seconds=CELL_SECONDS, environment=None, on_start=None):
    """Run the notebook at `path`; returns a Result and never raises for what the notebook does.

    Nothing is written to disk. `environment` is the kernel's; `on_start(manager)` is told of each kernel.
    """
    result = Result(Path(path))
    notebook = result.notebook = notebooks.read(path)
    for _, cell in notebooks.code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())

    def started(cell, cell_index):
        result.cell = cell_index

    def ended(cell, cell_index, **_):
        result.peak_mb = max(result.peak_mb, peak_megabytes(manager.provisioner.pid))

    client = NotebookClient(notebook, km=manager, timeout=cell_seconds, startup_timeout=120,
                            extra_arguments=["--log-level=ERROR"],
                            resources={"metadata": {"path": str(result.path.parent.resolve())}},
                            on_cell_start=started, on_cell_executed=ended)
    client.owns_km = True  # so that it also shuts the kernel down
    start = time.perf_counter()
    try:
        if on_start:
            on_start(manager)
        client.execute(env=os.environ | (environment or {}))
        result.cell = None
    except CellExecutionError as error:
        result.error = f"{error.ename}: {error.evalue}".splitlines()[0]
        result.trace = last_lines(traceback_of(notebook.cells[result.cell]))
    except CellTimeoutError:
        result.error = f"this cell ran for more than {cell_seconds} seconds"
    except DeadKernelError:
        result.error = "the kernel died (out of memory, or a crash)"
    except Exception as error:  # a kernel that does not start, a full disk: the other notebooks still get their turn
        result.error = f"{type(error).__name__}: {error}"
    result.seconds = time.perf_counter() - start
    for _, cell in notebooks.code_cells(notebook):
        cell.outputs = notebooks.merge_streams(cell.outputs)
    if result.error and result.cell is not None:
        result.source = notebook.cells[result.cell].source
    result.headline = headline_of(notebook)
    return result


def traceback_of(cell):
    return "\n".join(line for output in cell.outputs for line in output.get("traceback", []))


def last_lines(traceback, count=15):
    lines = notebooks.without_colours(traceback).rstrip().splitlines()
    return "\n".join((["..."] if len(lines) > count else []) + lines[-count:])


def run_all(paths, jobs=1, cell_seconds=CELL_SECONDS, environment=None, before=None, after=None):
    """Run notebooks in order, `jobs` at a time; returns their Results in the same order.

    `before(path)` is called as each one starts, `after(result)` as it ends, one call at a time. Ctrl-C ends all kernels
    at once; for their notebooks `after` is not called.
    """
    managers, lock, stopped = [], threading.Lock(), threading.Event()

    def one(path):
        if before:
            before(path)
        result = run_notebook(path, cell_seconds, environment, managers.append)
        with lock:
            if after and not stopped.is_set():
                after(result)
        return result

    pool = ThreadPoolExecutor(jobs)
    futures = [pool.submit(one, path) for path in paths]
    try:
        wait_for(futures)  # in threads, because nbclient takes over Ctrl-C in the main one
    except KeyboardInterrupt:
        stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for manager in managers:
            kill(manager)
        with lock:  # what was finished just now is also told of
            raise
    pool.shutdown()
    return [future.result() for future in futures]


def kill(manager):
    """End a kernel and its children, at once, if they still live."""
    try:
        process = psutil.Process(manager.provisioner.pid)
        for one in [*process.children(recursive=True), process]:
            one.kill()
    except (AttributeError, TypeError, psutil.Error):
        pass
