"""Kernels for the tests that begin with PyTorch imported: forked from a server that has imported it once.

A kernel of its own for each of the lessons is what a reader has, and what they are tested in; only its first three
seconds, in which every process imports the same modules, are spent once. `use()` makes jupyter_client start its
kernels so, where processes can be forked (Linux); a kernel that the server cannot start is started as usual.
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil

PRELOADED = (  # an optimizer imports the second when it is made
    "torch", "torch._dynamo", "pandas", "matplotlib.pyplot", "ipykernel.kernelapp")


class Forked:
    """A kernel's process, which is no child of this one, as jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        """None while it runs, then 0: with which status it ended only its parent knows."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE:
                return None
        return 0

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return 0

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def become_kernel(arguments, folder, environment, answers):
    """What a child of the server does: it turns into `python -m ipykernel_launcher ARGUMENTS`."""
    os.setsid()  # so that an interrupt reaches what the lesson starts, too
    print(os.getpid(), file=answers, flush=True)  # before anything can fail: a dead kernel is noticed, silence is not
    answers.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["ipykernel_launcher", *arguments]
    importlib.import_module("numpy").random.seed()  # or all kernels would draw the same
    importlib.import_module("ipykernel.kernelapp").launch_new_instance()


def serve():
    """The body of the server: a kernel for each line of standard input, whose pid is the answer."""
    del sys.path[0]  # this file's folder
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as every kernel of IPython has it
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what ends leaves nothing behind
    for line in sys.stdin:
        if os.fork() == 0:
            sys.stdin.close()
            return become_kernel(*json.loads(line), answers)


@functools.cache
def server():
    """The server of this process, which ends with it."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            encoding="utf-8")


def use():
    """Let jupyter_client fork this environment's kernels in place of starting them."""
    if sys.platform != "linux":
        return
    from jupyter_client.provisioning import local_provisioner

    usual = local_provisioner.launch_kernel

    def launch(command, env=None, cwd=None, **options):
        if command[:3] == [sys.executable, "-m", "ipykernel_launcher"]:
            with contextlib.suppress(OSError, ValueError):  # a server that died says nothing
                asked = [command[3:], str(cwd or os.getcwd()), dict(os.environ if env is None else env)]
                server().stdin.write(json.dumps(asked) + "\n")
                server().stdin.flush()
                return Forked(int(server().stdout.readline()))
        return usual(command, env=env, cwd=cwd, **options)

    local_provisioner.launch_kernel = launch


if __name__ == "__main__":
    serve()
