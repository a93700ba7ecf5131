"""Device, number format, scale: what is chosen, what the settings decide, and what is refused."""

import signal

import pytest
import torch

from shared import runtime


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("LLM_DTYPE", "LLM_DEVICE", "LLM_SCALE"):
        monkeypatch.delenv(name, raising=False)


def cpu_with(monkeypatch, *flags):
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: set(flags))


def gpu_of(monkeypatch, *capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize("flags, dtype", [((), None), (("avx512f", "sse2"), None), (("avx512_bf16",), torch.bfloat16),
                                          (("amx_bf16", "avx512_bf16"), torch.bfloat16)])  # fmt: skip
def test_auto_takes_what_the_cpu_is_fast_in(monkeypatch, flags, dtype):
    cpu_with(monkeypatch, *flags)
    for value in (None, "auto", " AUTO ", ""):
        if value is not None:
            monkeypatch.setenv("LLM_DTYPE", value)
        chosen, reason = runtime.autocast_dtype("cpu", explain=True)
        assert chosen is dtype and ("in hardware" if dtype else "no bfloat16 units") in reason


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float16), ((8, 0), torch.bfloat16),
                                               ((9, 0), torch.bfloat16)])  # fmt: skip
def test_auto_takes_what_the_gpu_is_fast_in(monkeypatch, capability, dtype):
    gpu_of(monkeypatch, *capability)
    chosen, reason = runtime.autocast_dtype("cuda", explain=True)
    assert chosen is dtype and f"{capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize("flags", [(), ("avx512_bf16",)])
@pytest.mark.parametrize("wanted, dtype", [("float32", None), ("BFloat16", torch.bfloat16)])
def test_the_setting_decides_on_any_cpu(monkeypatch, flags, wanted, dtype):
    cpu_with(monkeypatch, *flags)
    monkeypatch.setenv("LLM_DTYPE", wanted)
    chosen, reason = runtime.autocast_dtype("cpu", explain=True)
    assert chosen is dtype and reason.startswith("LLM_DTYPE asks for it")
    assert ("no bfloat16 units" in reason) == (dtype is not None and not flags)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):  # it is computed, if by emulation
        product = torch.ones(2, 2) @ torch.full((2, 2), 1 + 1 / 512)
    assert product[0, 0] == (2 if dtype else 2 + 1 / 256)  # bfloat16 has no 1 + 1/512


def test_float16_is_for_gpus(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float16")
    with pytest.raises(ValueError, match="LLM_DTYPE=float16 needs a GPU"):
        runtime.describe("cpu")
    gpu_of(monkeypatch, 9, 0)
    chosen, reason = runtime.autocast_dtype("cuda", explain=True)
    assert chosen is torch.float16 and "9.0 has bfloat16 units" in reason
    monkeypatch.setattr(runtime, "get_device", lambda: torch.device("cuda"))
    assert runtime.autocast_dtype("cpu") is None  # what is computed on the CPU beside it stays in float32


@pytest.mark.parametrize("name, value", [("LLM_DTYPE", "fp8"), ("LLM_SCALE", "huge"), ("LLM_DEVICE", "toaster"),
                                         ("LLM_DEVICE", "meta")])  # fmt: skip
def test_an_unknown_setting_is_one_clear_error(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as error:
        runtime.describe()
    assert name in str(error.value) and value in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 120  # PyTorch's own list of devices is longer


def test_the_line_of_a_lesson_says_the_format_and_why(monkeypatch):
    cpu_with(monkeypatch)
    assert "float32: this CPU has no bfloat16 units" in runtime.describe("cpu")
    monkeypatch.setenv("LLM_DTYPE", "bfloat16")
    assert "bfloat16: LLM_DTYPE asks for it (auto would not: this CPU has no bfloat16" in runtime.describe("cpu")


def test_stop_on_collects_signals_until_patience_ends_and_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with runtime.stop_on(signal.SIGINT, signal.SIGTERM, patience=2) as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt), runtime.stop_on(signal.SIGINT):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
