"""Where and how the code runs: device, number format, scale, seed, and how it is stopped.

Three environment variables are read here and nowhere else: `LLM_DEVICE` (for example `cpu`, `cuda:1`, `mps`),
`LLM_DTYPE` (`auto`, `float32`, `bfloat16` or `float16`) and `LLM_SCALE` (`quick` or `full`). Nothing is decided at
import time.
"""

import contextlib
import os
import platform
import random
import signal
import sys
import threading
from datetime import date

import numpy as np
import torch


def get_device():
    """The device to compute on: `LLM_DEVICE` if it is set, else CUDA, else Apple's MPS, else the CPU.

    Raises ValueError when `LLM_DEVICE` names a device that PyTorch cannot use here.
    """
    wanted = os.environ.get("LLM_DEVICE", "").strip().lower()
    if wanted:
        try:
            device = torch.device(wanted)
            torch.zeros(1, device=device).item()  # which "meta" cannot give
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            if "Expected one of" in reason:  # twenty names follow
                reason = "it must be cpu, cuda (or cuda:1, the second GPU) or mps"
            raise ValueError(f"LLM_DEVICE={wanted!r} cannot be used here: {reason}") from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def autocast_dtype(device, explain=False):
    """The number format for mixed precision on `device`: torch.bfloat16, torch.float16 or None (stay in float32).

    `LLM_DTYPE` decides; where it is `auto` or not set, what the hardware is fast in. With `explain=True` returns
    `(dtype, reason)`. Raises ValueError for any other value, and for float16 on a CPU.
    """
    device = torch.device(device)
    fast, reason = _fast_dtype(device)
    wanted = os.environ.get("LLM_DTYPE", "auto").strip().lower() or "auto"
    formats = {"auto": fast, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted not in formats:
        raise ValueError(f"LLM_DTYPE is {wanted!r}; it must be one of {', '.join(formats)}")
    if wanted == "float16" and device.type == "cpu":
        if get_device().type == "cpu":
            raise ValueError("LLM_DTYPE=float16 needs a GPU; on a CPU use auto, float32 or bfloat16")
        wanted = "float32"  # a small part beside a GPU
    if wanted != "auto":
        other = formats[wanted] not in (fast, None)  # slower here than what `auto` would choose
        reason = f"LLM_DTYPE asks for it{f' (auto would not: {reason})' if other else ''}"
    return (formats[wanted], reason) if explain else formats[wanted]


def _fast_dtype(device):
    """What `auto` chooses, and why. The hardware is asked, not `is_bf16_supported()`: a T4 says yes, and emulates."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} has bfloat16 units"
        return torch.float16, f"compute capability {major}.{minor} is below 8.0: float16 with a gradient scaler"
    if device.type == "cpu":
        found = [name for name in ("amx_bf16", "avx512_bf16") if name in _cpu_flags()]
        if found:
            return torch.bfloat16, f"this CPU multiplies bfloat16 in hardware ({', '.join(found)})"
        return None, "this CPU has no bfloat16 units (AMX or AVX512-BF16): mixed precision would be slower"
    return None, f"not measured to be faster on {device.type}"


def _cpu_flags():
    """Names of the CPU's bfloat16 features, from the system's list (Linux) or PyTorch's probes."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return set(next(line for line in file if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        probes = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
        return {name for name, probe in probes.items() if getattr(torch.cpu, probe, lambda: False)()}


def scale():
    """`"quick"` or `"full"`, from `LLM_SCALE`; quick unless told otherwise. Any other value raises ValueError."""
    value = os.environ.get("LLM_SCALE", "quick").strip().lower() or "quick"
    if value not in ("quick", "full"):
        raise ValueError(f"LLM_SCALE is {value!r}; it must be 'quick' or 'full'")
    return value


@contextlib.contextmanager
def evaluating(model):
    """`model` in eval mode and without gradients; after an error too it goes back to the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def seed_everything(seed):
    """Seed Python's, NumPy's and PyTorch's random numbers (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def stop_on(*signals, patience=1):
    """Gives a list that is empty until one of `signals` comes (signal.SIGINT: Ctrl-C, a notebook's stop button).

    The block looks at the list where it can end well. When more than `patience` have come, KeyboardInterrupt is raised.
    """
    stop = []

    def on_signal(number, frame):
        stop.append(number)
        if len(stop) > patience:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield stop
        return
    previous = {number: signal.signal(number, on_signal) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def peak_memory(device="cpu"):
    """Most bytes in use so far: of the GPU's memory, else by this process; None where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as file:  # Linux
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    try:  # its number begins with the size of the process that started this one
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(device=None):
    """One line for the top of a lesson, such as `cpu, float32 (...), scale quick, torch 2.13.0`."""
    device = torch.device(device) if device is not None else get_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    dtype, reason = autocast_dtype(device, explain=True)
    number = str(dtype or torch.float32).removeprefix("torch.")
    return f"{name} | {number}: {reason} | scale {scale()} | torch {torch.__version__}"


def machine():
    """One line for a table of results: the system, the processor's kind, and what `describe` says."""
    return f"{platform.system()} {platform.machine()}, {describe()}"


def made_on():
    """What each table of results says of its making: the date, the machine, and how many threads computed."""
    return {"date": date.today().isoformat(), "machine": machine(), "threads": torch.get_num_threads()}
