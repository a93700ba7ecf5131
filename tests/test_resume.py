"""The state of a run in one file: round trip, damage, other models, a full disk, a kill in the middle of saving."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shared import resume
from shared.gpt import GPTConfig, GPTModel
from shared.loss import next_token_loss
from shared.resume import History, load_state, read_state, save_state
from shared.training import make_optimizer

CONFIG = GPTConfig(60, 16, 32, 4, 2, drop_rate=0.1)
IDS = torch.randint(0, 60, (17,), generator=torch.Generator().manual_seed(0))
ROOT = Path(__file__).resolve().parents[1]


def make(seed=1, config=CONFIG):
    torch.manual_seed(seed)
    return GPTModel(config)


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_round_trip(tmp_path, tied):
    config, file = replace(CONFIG, tie_weights=tied), tmp_path / "c.safetensors"
    model = make(config=config)
    optimizer = make_optimizer(model)
    next_token_loss(model, IDS[None, :16], IDS[None, 1:17]).backward()
    optimizer.step()
    save_state(file, model, optimizer)
    other = make(seed=2, config=config)
    other_optimizer = make_optimizer(other, lr=9.0)
    load_state(file, other, other_optimizer)
    assert same_weights(model, other)
    assert (other.head.weight is other.token_embedding.weight) == tied
    assert other_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        a, b = optimizer.state[p], other_optimizer.state[q]
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) and a["step"] == b["step"]


def test_wrong_and_damaged_checkpoints_are_refused_and_change_nothing(tmp_path):
    file, model, before = tmp_path / "c.safetensors", make(), make()
    with pytest.raises(FileNotFoundError, match="c.safetensors"):
        load_state(file, model)
    save_state(file, make(seed=5, config=replace(CONFIG, emb_dim=64)))
    with pytest.raises(ValueError, match=r"emb_dim 64 \(here 32\)"):
        load_state(file, model)
    save_state(file, make(seed=5))
    whole = file.read_bytes()
    for damaged in (b"", b"junk", whole[:3], whole[:2000], whole[:-1], b"\xff" * 8 + whole[8:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="no whole checkpoint"):
            load_state(file, model)
    assert same_weights(model, before)


def test_one_wrong_bit_in_a_checkpoint_is_noticed_wherever_it_is(tmp_path):
    file, before = tmp_path / "c.safetensors", make()
    model, optimizer = make(), make_optimizer(make())
    save_state(file, make(seed=5), make_optimizer(make(seed=5)), history=History(steps_done=3))
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    _, state = read_state(file)
    assert state["history"]["steps_done"] == 3
    names = whole.index(b'"state"')  # behind it: what the metadata say of the run, then the tensors' names
    for position in [*range(8), *range(names, header, 31), *range(header, len(whole), 1997), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="c.safetensors is no whole checkpoint"):
            load_state(file, model, optimizer)
    assert same_weights(model, before)


def test_another_optimizer_is_refused_before_the_weights_are_changed(tmp_path):
    model = make()
    save_state(tmp_path / "c.safetensors", make(seed=5), make_optimizer(make(seed=5)))
    with pytest.raises(ValueError, match="parameter group"):
        load_state(tmp_path / "c.safetensors", model, torch.optim.SGD(model.parameters()))
    assert same_weights(model, make())


def test_a_state_without_an_optimizer_does_not_start_one_anew_in_silence(tmp_path):
    model, file = make(), tmp_path / "c.safetensors"
    save_state(file, make(seed=5))
    with pytest.raises(ValueError, match="c.safetensors holds no state of an optimizer"):
        load_state(file, model, make_optimizer(model))
    assert same_weights(model, make())


def test_a_run_in_bfloat16_goes_on_in_float16_and_back(tmp_path):
    """Only the second scales its gradients: from its own first scale on."""
    file, model = tmp_path / "c.safetensors", make()
    scalers = [torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True)]
    for saved, loaded in (scalers, scalers[::-1]):
        save_state(file, make(seed=5), None, saved)
        load_state(file, model, None, loaded)
    assert same_weights(model, make(seed=5)) and scalers[1].get_scale() == 65536


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["model.final_norm.bias", "optimizer.0.exp_avg"])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, where, number):
    file, model = tmp_path / "c.safetensors", make()
    optimizer = make_optimizer(model)
    next_token_loss(model, IDS[None, :16], IDS[None, 1:17]).backward()
    optimizer.step()
    save_state(file, model, optimizer)
    before = file.read_bytes()
    with torch.no_grad():
        if "optimizer" in where:
            next(iter(optimizer.state.values()))["exp_avg"][0, 0] = number
        else:
            model.final_norm.bias[3] = number
    with pytest.raises(FloatingPointError, match=f"{where} is not finite: it is not saved"):
        save_state(file, model, optimizer)
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_full_disk_harms_nothing(tmp_path, monkeypatch):
    file, model = tmp_path / "c.safetensors", make()
    save_state(file, model)
    before = file.read_bytes()

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "save_file", full)
    with pytest.raises(OSError, match="No space left.*untouched"):
        save_state(file, make(seed=3))
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_kill_in_the_middle_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    file = tmp_path / "c.safetensors"
    code = (
        "import sys, torch\n"
        "from shared.gpt import GPTConfig, GPTModel\nfrom shared.resume import save_state\n"
        "model = GPTModel(GPTConfig(20000, 16, 128, 4, 2))\n"
        "for i in range(10**6):\n"
        "    torch.nn.init.constant_(model.final_norm.bias, float(i))\n"
        f"    save_state({str(file)!r}, model)\n"
        "    print(i, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "5":
            break
    part = tmp_path / "c.safetensors.part"
    deadline = time.monotonic() + 30
    while not part.exists() and time.monotonic() < deadline:
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    model = GPTModel(GPTConfig(20000, 16, 128, 4, 2))
    load_state(file, model)
    assert model.final_norm.bias[0] >= 5 and len(model.final_norm.bias.unique()) == 1
