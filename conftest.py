"""How pytest runs the lessons: every notebook, cell by cell, through nbval, in the same pass as the other tests.

`pytest` alone runs all; `pytest 02_attention/02_self_attention.ipynb` one lesson. A cell's saved output is compared
only where the cell is tagged `nbval-check-output`; with the tag `real-data` besides, only where that data is there.
The file stands at the root because only here it is also read when a single notebook is named.
"""

import contextlib
import io
import os
import signal
import tempfile
import time
from queue import Empty

import nbval.plugin
import pytest
from nbval.kernel import RunningKernel

from tools import warm_kernels

CELL_SECONDS = 300  # one cell at quick scale; the slowest takes far less
POLL_SECONDS = 0.5  # how often a waiting test asks whether the kernel still lives
REAL_DATA = ("the_verdict", "gpt2_vocab")
IPYTHON_DIR = tempfile.TemporaryDirectory(prefix="ipython-", ignore_cleanup_errors=True)


class KernelDiedError(Exception):
    """The kernel process ended while a cell ran: out of memory, or a crash."""


class Kernel(RunningKernel):
    """nbval's kernel, which notices its own death within a second and is started twice if need be."""

    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except (RuntimeError, KernelDiedError):  # now and then one of many kernels dies while it starts
            if self.is_alive():
                self.stop()
            super().__init__(*args, **kwargs)

    def get_message(self, stream, timeout=None):
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = POLL_SECONDS if end is None else min(POLL_SECONDS, max(0, end - time.monotonic()))
            try:
                return super().get_message(stream, timeout=left)
            except Empty:
                if not self.is_alive():
                    raise KernelDiedError from None
                if end is not None and time.monotonic() >= end:
                    raise


def run_cell(item, runtest=nbval.plugin.IPyNbCell.runtest):
    """One cell as one test; the cells after a broken one are skipped, for they would fail of that alone."""
    if getattr(item.parent, "broken_at", None) is not None:
        pytest.skip(f"cell {item.parent.broken_at} of this notebook did not run")
    item.output_timeout = 30
    try:
        runtest(item)
    except KernelDiedError:
        item.parent.broken_at = item.cell_num
        raise nbval.plugin.NbCellError(item.cell_num, "The kernel died in this cell", item.cell.source) from None
    except nbval.plugin.NbCellError as error:
        if "outputs differ" not in str(error):
            item.parent.broken_at = item.cell_num
        raise


def prepare_environment():
    """What the kernels inherit: quick scale, the CPU, no text of the reader's own, a fair share of the threads."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    os.environ["LLM_SCALE"] = "quick"
    os.environ.pop("LLM_TEXT", None)
    os.environ.setdefault("LLM_DEVICE", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: there Ctrl-C would be deaf
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads make a busy machine several times slower
    os.environ["IPYTHONDIR"] = IPYTHON_DIR.name  # no start-up files or history of the reader's own
    os.environ.pop("MPLBACKEND", None)


def missing_data():
    """Names of the data sets that are not there in their real form (their bundled sample stands in)."""
    from shared import data

    missing = []
    for name in REAL_DATA:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                if data.places.is_sample(data.fetch(name, progress=False)):
                    missing.append(name)
            except data.DownloadError:
                missing.append(name)
    return missing


def pytest_configure(config):
    option = config.option
    option.nbval_lax = not option.nbval
    option.nbval_current_env = not option.nbval_kernel_name
    if option.nbval_cell_timeout == 2000:  # nbval's default
        option.nbval_cell_timeout = CELL_SECONDS
    nbval.plugin.RunningKernel = Kernel
    nbval.plugin.IPyNbCell.runtest = run_cell
    prepare_environment()
    warm_kernels.use()


def pytest_report_header():
    missing = missing_data()
    return f"data: bundled samples in place of {', '.join(missing)}" if missing else "data: the real files"


def pytest_collection_modifyitems(items):
    real = [item for item in items if "real-data" in tags_of(item)]
    if real and missing_data():
        for item in real:
            item.options["check"] = False
    items.sort(key=lambda item: turn_of(item.nodeid))


def turn_of(nodeid):
    """Long ones first, so that no worker waits at the end; before them lesson 5.1, whose assistant others read."""
    marks = ("01_instruction_finetune.ipynb", "test_bites.py", ".ipynb")
    return next((i for i, mark in enumerate(marks) if mark in nodeid.split("::")[0]), len(marks))


def tags_of(item):
    return item.cell.metadata.get("tags", []) if isinstance(item, nbval.plugin.IPyNbCell) else []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, but the tests in test_bites.py, one long test a lesson, may go to different workers."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_bites.py" in nodeid else nodeid.split("::", 1)[0]

    config.option.loadscopereorder = False
    return Scheduling(config, log)
