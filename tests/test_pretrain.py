"""The trainer 03_gpt/pretrain.py: data position, resume, signals, several processes, errors, what it leaves."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "03_gpt"))

import prepare_corpus  # noqa: E402
import pretrain  # noqa: E402
import pretrain_processes  # noqa: E402

from shared import data  # noqa: E402
from shared.checkpoints import load_base, load_model  # noqa: E402
from shared.classification import SpamClassifier, balance, parse_messages, train_classifier  # noqa: E402
from shared.files import sha256_of  # noqa: E402
from shared.gpt import GPT2_CONFIGS, GPTConfig, GPTModel  # noqa: E402
from shared.instructions import InstructionData, answer_loss, check_entries, instruction_loader, respond  # noqa: E402
from shared.loss import chunked_loss, mean_loss, next_token_loss  # noqa: E402
from shared.tokenizer import BPETokenizer  # noqa: E402
from shared.training import train, training_step  # noqa: E402

SIZE = ["--layers", "2", "--heads", "2", "--width", "32", "--context", "32"]
RUN = [*SIZE, "--batch", "4", "--tokens-per-step", "512", "--tokens", "6144", "--lr", "3e-3", "--eval-every", "5",
       "--eval-windows", "8", "--dropout", "0.1"]  # fmt: skip
SCRIPT = [sys.executable, str(ROOT / "03_gpt" / "pretrain.py")]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "LLM_DEVICE": "cpu"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As in the processes that the tests start: sums then come out the same to the last bit."""
    monkeypatch.setenv("LLM_DEVICE", "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A corpus folder with two training shards, made of the bundled story."""
    folder = tmp_path_factory.mktemp("corpus")
    text = (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
    tokenizer = BPETokenizer().train(text, 320)
    tokenizer.save(folder / "tokenizer")
    ids = np.array(tokenizer.to_tiktoken("t").encode_ordinary(text), dtype="<u2")
    parts = {"train_00000.bin": ids[:3000], "train_00001.bin": ids[3000:-1500], "validation_00000.bin": ids[-1500:]}
    splits = {"train": {"shards": []}, "validation": {"shards": []}}
    for name, part in parts.items():
        part.tofile(folder / name)
        shard = {"file": name, "tokens": len(part), "sha256": sha256_of(folder / name)}
        splits[name.split("_")[0]]["shards"].append(shard)
    for split in splits.values():
        split["tokens"] = sum(shard["tokens"] for shard in split["shards"])
    sha256 = sha256_of(folder / "tokenizer" / "merges.txt")
    manifest = {"format": 1, "dtype": "uint16", "splits": splits, "tokenizer": {"sha256": sha256},
                "files": {"tokenizer/merges.txt": sha256}}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def run(corpus, out, *options):
    pretrain.main(["--data", str(corpus), "--out", str(out), *RUN, *options])


def start(corpus, out, *options):
    """The same in a process of its own, which saves a checkpoint after each step."""
    command = [*SCRIPT, "--data", str(corpus), "--out", str(out), *RUN, "--checkpoint-minutes", "0", *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="session")
def unbroken(corpus, tmp_path_factory):
    """The folder of a run of 12 steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DEVICE", "cpu")
        torch.set_num_threads(1)
        run(corpus, out)
    return out


def tensors_of(out):
    file = pretrain.checkpoints_in(out)[-1]
    with safe_open(file, framework="pt") as opened:
        return file.name, {name: opened.get_tensor(name) for name in opened.keys()}


def metrics_of(out):
    """What a run measured, without what differs from run to run, and what it measured because it was stopped."""
    entries = pretrain.read_metrics(out)
    for entry in entries:
        for name in ["tokens_per_s", "memory_mb"] + ["val_loss"] * (entry["step"] not in (5, 10, 12)):
            entry.pop(name, None)
    return entries


def history_of(out):
    """What the newest checkpoint tells of the run before it."""
    with safe_open(pretrain.checkpoints_in(out)[-1], framework="pt") as opened:
        return json.loads(opened.metadata()["state"])["history"]


def flip_an_exponent(file):
    """Damage a checkpoint so that it still reads well: the last token's embedding becomes huge or tiny."""
    content = bytearray(file.read_bytes())
    with safe_open(file, framework="pt") as opened:
        weight = opened.get_tensor("model.final_norm.weight").numpy().tobytes()
    content[content.index(weight) + 3] ^= 0x10
    file.write_bytes(content)


def assert_same_run(out, other):
    (name, tensors), (other_name, others) = tensors_of(out), tensors_of(other)
    assert name == other_name and tensors.keys() == others.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert not different
    assert metrics_of(out) == metrics_of(other)


# ---- the data


def test_windows_are_pieces_of_the_shards_with_their_targets():
    shards = [np.arange(first, end, dtype=np.uint16) for first, end in ((0, 100), (100, 107), (200, 260))]
    windows = pretrain.Windows(shards, context_length=10, seed=0)
    assert windows.ends[-1] == 90 + 0 + 50  # the second shard is too short for one window
    inputs, targets = windows.read(np.arange(140))  # all there are
    assert inputs.shape == targets.shape == (140, 10)
    assert (targets == inputs + 1).all()  # so no window crosses from one shard to another
    assert inputs[:, 0].tolist() == [*range(90), *range(200, 250)]


def test_the_windows_of_a_step_depend_on_seed_and_step_alone_and_cover_the_stream():
    shards = [np.arange(5000, dtype=np.uint16)]
    windows = pretrain.Windows(shards, 10, seed=3)
    starts = [windows.random(step, 8) for step in range(300)]
    assert (windows.random(7, 8) == starts[7]).all()
    assert (starts[7] != starts[8]).any()
    assert (starts[7] != pretrain.Windows(shards, 10, seed=4).random(7, 8)).any()
    counts = np.histogram(np.concatenate(starts), bins=20, range=(0, 4990))[0]
    assert counts.min() > 80 and counts.max() < 160  # 120 each, were they all equal
    assert min(s.max() - s.min() for s in starts) > 3000  # each step reads from all over the stream


def test_processes_share_a_steps_windows():
    windows = pretrain.Windows([np.arange(5000, dtype=np.uint16)], 10, seed=0)
    starts = windows.random(0, 12)
    shares = [pretrain.batches_of(windows, starts, 2, rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    firsts = [x[:, 0].tolist() for share in shares for x, _ in share]
    assert sorted(sum(firsts, [])) == sorted(starts.tolist())
    assert len(windows.evenly(7, world=2)) == 6


# ---- the optimizer


def test_muon_updates_the_blocks_matrices_and_adamw_the_rest():
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(50, 16, 32, 2, 2))
    optimizer = pretrain.build_optimizer(model, "muon", 1e-2, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert set.union(*groups) == set(names.values()) and sum(map(len, groups)) == len(names)
    assert groups[0] == {n for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2}
    weight, norm = model.blocks[0].feed_forward.contract.weight, model.final_norm.weight
    before, norm_before, x = weight.detach().clone(), norm.detach().clone(), torch.randint(0, 50, (4, 16))
    training_step(pretrain_processes.LossModule(model), [(x, x)], pretrain_processes.call, optimizer,
                  torch.amp.GradScaler("cpu", enabled=False), None)  # fmt: skip
    update = (before - weight).detach() / (1e-2 * 0.2 * 128**0.5)  # Liu et al. 2025: times 0.2 sqrt(max(m, n))
    singular = torch.linalg.svdvals(update)[:-1]  # the layer norm that follows leaves one direction without gradient
    assert 0.6 < singular.min() and singular.max() < 1.3  # orthogonal, as far as five iterations go
    assert_close((norm_before - norm).abs().max().item(), 1e-2, rtol=1e-3, atol=0)  # AdamW's first step: the rate


@pytest.mark.parametrize(("number_format", "apart"), [("bfloat16", 0.0), ("float32", 2e-3)])
def test_muon_is_pytorchs_but_for_its_bfloat16(monkeypatch, number_format, apart):
    monkeypatch.setenv("LLM_DTYPE", number_format)
    torch.manual_seed(0)
    matrices = [torch.randn(24, 60), torch.randn(60, 24)]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in matrices] for _ in range(2))
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    optimizers = [pretrain.Muon(ours, adamw, **settings),
                  torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")]  # fmt: skip
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, atol=apart, rtol=0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_of_the_optimizer_goes_on_where_it_was(name):
    def fresh():
        torch.manual_seed(0)
        model = GPTModel(GPTConfig(50, 16, 32, 2, 1))
        return model, pretrain.build_optimizer(model, name, 1e-2, 0.1)

    def step(model, optimizer, seed):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    model, optimizer = fresh()
    step(model, optimizer, 1)
    saved = deepcopy(optimizer.state_dict())
    other, other_optimizer = fresh()
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(saved)
    step(model, optimizer, 2)
    step(other, other_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_logits_that_would_take_a_quarter_of_the_memory_come_in_chunks(monkeypatch, device):
    """GPT-2's of 8 windows take 4.94 GB, three times 8 * 1024 * 50257 numbers of four bytes."""
    for gigabytes, expected in ((19.7, chunked_loss), (19.8, next_token_loss)):
        card = SimpleNamespace(total_memory=gigabytes * 1e9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        pages = {"SC_PHYS_PAGES": gigabytes * 1e9 / 4096, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(os, "sysconf", pages.get, raising=False)
        assert pretrain_processes.choose_loss(torch.device(device), GPT2_CONFIGS["gpt2"], 8) is expected


def test_a_muon_of_another_kind_is_refused(corpus, tmp_path):
    muon = ["--optimizer", "muon", "--tokens", "512"]
    run(corpus, tmp_path / "run", *muon)
    model = GPTModel(GPTConfig(320, 32, 32, 2, 2, drop_rate=0.1))
    [file] = pretrain.checkpoints_in(tmp_path / "run")
    state = {}
    history = pretrain.load_state(file, model, SimpleNamespace(load_state_dict=state.update))
    for values in state["state"].values():
        if "momentum" in values:  # as torch.optim.Muon calls it
            values["momentum_buffer"] = values.pop("momentum")
    pretrain.save_state(file, model, SimpleNamespace(state_dict=lambda: state), None, history)
    with pytest.raises(SystemExit, match="the checkpoint is of another optimizer .*keeps momentum_buffer"):
        run(corpus, tmp_path / "run", *muon[:2], "--tokens", "1024", "--resume")


# ---- runs


def test_a_run_learns_and_leaves_a_hugging_face_folder(unbroken, corpus):
    metrics = pretrain.read_metrics(unbroken)
    assert [entry["step"] for entry in metrics] == list(range(1, 13)) and metrics[-1]["tokens"] == 6144
    assert abs(metrics[0]["loss"] - np.log(320)) < 0.1 and metrics[-1]["loss"] < metrics[0]["loss"] - 0.4
    assert [entry["step"] for entry in metrics if "val_loss" in entry] == [5, 10, 12]
    assert all(entry["grad_norm"] > 0 and entry["tokens_per_s"] > 0 for entry in metrics)
    assert metrics[-1]["lr"] < metrics[3]["lr"] < 3e-3 + 1e-9
    assert (unbroken / "loss.png").stat().st_size > 5000
    assert (unbroken / "samples.txt").read_text(encoding="utf-8").count("--- step") == 3
    model, tokenizer = load_model(unbroken)
    assert tokenizer.n_vocab == 320 and model.config.n_layers == 2
    _, tensors = tensors_of(unbroken)
    assert torch.equal(tensors["model.final_norm.weight"], model.final_norm.weight)
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(unbroken).eval()
    ids = torch.tensor([[1, 2, 3, 319]])
    assert_close(theirs(ids).logits, model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
def test_a_run_learns_in_each_number_format(number_format, optimizer, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_DTYPE", number_format)
    run(corpus, tmp_path / "run", "--optimizer", optimizer, "--dropout", "0")
    losses = [entry["loss"] for entry in pretrain.read_metrics(tmp_path / "run")]
    assert f"| {number_format}: LLM_DTYPE asks for it" in capsys.readouterr().out
    assert losses[-1] < losses[0] - 0.4


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_stopped_a_run_resumes_bit_for_bit_and_another_keeps_out_meanwhile(unbroken, corpus, tmp_path):
    out = tmp_path / "run"
    process, deadline = start(corpus, out), time.monotonic() + 90
    while len(pretrain.read_metrics(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for options in ([], ["--resume"]):
        with pytest.raises(SystemExit, match=f"another pretrain.py is at work in {out}"):
            run(corpus, out, *options)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "--resume goes on" in said, said
    (name, _), last = tensors_of(out), pretrain.read_metrics(out)[-1]
    assert name == f"step_{last['step']:08d}.safetensors" and 2 <= last["step"] < 12
    run(corpus, out, "--resume")
    assert_same_run(out, unbroken)
    assert len(pretrain.checkpoints_in(out)) == 2


CAMPAIGN = """
import os, random, signal, sys, time
from pathlib import Path
import matplotlib.figure
import torch._dynamo
import pretrain

torch.set_num_threads(1)
metrics, moments = Path(sys.argv[1]) / "metrics.jsonl", random.Random(0)
for steps in (1, 4, 7, 10):
    child = os.fork()  # which saves the imports
    if child == 0:
        pretrain.main(sys.argv[2:])
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if metrics.exists() and metrics.read_bytes().count(b"\\n") >= steps:
            time.sleep(moments.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            print("killed", flush=True)
            os.waitpid(child, 0)
            break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_at_random_moments_a_run_resumes_bit_for_bit(unbroken, corpus, tmp_path):
    options = ["--data", str(corpus), "--out", str(tmp_path), *RUN, "--checkpoint-minutes", "0", "--resume"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "03_gpt")}
    done = subprocess.run([sys.executable, "-c", CAMPAIGN, str(tmp_path), *options], env=environment, text=True,
                          capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("killed") >= 3, done.stderr[-3000:]
    assert len(pretrain.checkpoints_in(tmp_path)) <= 2 + 1  # killed between writing and tidying: one more
    run(corpus, tmp_path, "--resume")
    assert_same_run(tmp_path, unbroken)
    assert history_of(tmp_path) == history_of(unbroken)
    assert (tmp_path / "samples.txt").read_bytes() == (unbroken / "samples.txt").read_bytes()
    assert len(pretrain.checkpoints_in(tmp_path)) == 2 and not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(os.name == "nt", reason="gloo needs more set-up on Windows")
@pytest.mark.parametrize("kind, number_format, apart", [("ddp", "float32", 2e-5), ("fsdp", "float32", 2e-5),
                                                        ("fsdp", "bfloat16", 2e-2)])  # fmt: skip
def test_two_processes_reach_the_losses_of_one(corpus, tmp_path, kind, number_format, apart, monkeypatch):
    """The first half is one process's, the second that of two, from its checkpoint: equal to rounding."""
    monkeypatch.setenv("LLM_DTYPE", number_format)
    plain = ["--dropout", "0", "--min-lr", "3e-3", "--warmup", "0"]
    run(corpus, tmp_path / "one", *plain, "--tokens", "3072")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    run(corpus, tmp_path / "one", *plain, "--resume")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT[1],
               "--data", str(corpus), "--out", str(tmp_path / "two"), *RUN, *plain, "--resume"]  # fmt: skip
    command += ["--fsdp"] * (kind == "fsdp")
    environment = ENVIRONMENT | {"LLM_DTYPE": number_format}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stdout
    ours, theirs = metrics_of(tmp_path / "two"), metrics_of(tmp_path / "one")
    assert len(ours) == len(theirs) == 12
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert_close([a[k] for k in a], [b[k] for k in a], atol=apart, rtol=apart)
    (_, tensors), (_, others) = tensors_of(tmp_path / "two"), tensors_of(tmp_path / "one")
    assert tensors.keys() == others.keys()
    for key in others.keys() - {"random.cpu"} if number_format == "float32" else ():
        assert_close(tensors[key], others[key], atol=2e-4, rtol=1e-3)
    assert load_model(tmp_path / "two")[0].config.n_layers == 2


def test_recomputing_changes_nothing(unbroken, corpus, tmp_path):
    run(corpus, tmp_path / "run", "--recompute")
    assert_same_run(tmp_path / "run", unbroken)


def test_muon_runs_and_resumes_bit_for_bit(corpus, tmp_path, capsys):
    muon = ["--optimizer", "muon", "--dropout", "0"]
    run(corpus, tmp_path / "a", *muon)
    run(corpus, tmp_path / "b", *muon, "--min-lr", "1e-3", "--lr", "1e-3", "--warmup", "0", "--tokens", "2048")
    run(corpus, tmp_path / "c", *muon, "--min-lr", "1e-3", "--lr", "1e-3", "--warmup", "0")
    run(corpus, tmp_path / "b", *muon, "--min-lr", "1e-3", "--lr", "1e-3", "--warmup", "0", "--resume")
    assert "tokens was 2048, is 6144" in capsys.readouterr().out
    assert torch.equal(tensors_of(tmp_path / "b")[1]["model.final_norm.bias"],
                       tensors_of(tmp_path / "c")[1]["model.final_norm.bias"])  # fmt: skip
    losses = [entry["loss"] for entry in pretrain.read_metrics(tmp_path / "a")]
    assert losses[-1] < losses[0] - 0.4
    with pytest.raises(SystemExit, match="--resume: .* another optimizer"):
        run(corpus, tmp_path / "a", "--resume", "--tokens", "7168", "--dropout", "0")


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(corpus, tmp_path, monkeypatch):
    calls = []

    def broken(model, inputs, targets):
        calls.append(model.training)
        if model.training and sum(calls) == 7 * 4 + 1:
            flip_an_exponent(pretrain.checkpoints_in(tmp_path / "run")[-1])
        loss = next_token_loss(model, inputs, targets)
        return loss * (float("nan") if sum(calls) == 7 * 4 + 1 else 1.0)  # in step 8

    monkeypatch.setattr(pretrain_processes, "choose_loss", lambda *args: broken)
    with pytest.raises(SystemExit, match="step 8: the loss is nan.*step_00000006"):
        run(corpus, tmp_path / "run", "--checkpoint-minutes", "0")
    assert pretrain.read_metrics(tmp_path / "run")[-1]["step"] == 7
    assert [file.name[:13] for file in pretrain.checkpoints_in(tmp_path / "run")] == ["step_00000006", "step_00000007"]


@pytest.mark.parametrize("steps", [1, 6])
def test_weights_that_the_last_update_broke_are_not_saved(corpus, tmp_path, steps):
    options = ["--lr", "1e18", "--warmup", "0", "--clip", "0", "--eval-every", "1"]
    with pytest.raises(SystemExit, match="step 1: the validation loss is nan.*: none yet"):
        run(corpus, tmp_path / "run", *options, "--tokens", str(512 * steps))
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "model.safetensors").exists()


def test_weights_that_broke_since_the_last_evaluation_are_not_saved_by_the_clock(corpus, tmp_path, monkeypatch):
    step, steps = pretrain.training_step, []

    def breaking(module, *args):
        result = step(module, *args)
        steps.append(1)
        if len(steps) == 3:
            with torch.no_grad():
                module.model.final_norm.bias[3] = float("inf")
        return result

    monkeypatch.setattr(pretrain, "training_step", breaking)
    message = "step 3: model.final_norm.bias is not finite.* The last good checkpoint: .*step_00000002"
    with pytest.raises(SystemExit, match=message):
        run(corpus, tmp_path / "run", "--checkpoint-minutes", "0")
    assert pretrain.checkpoints_in(tmp_path / "run")[-1].name == "step_00000002.safetensors"
    assert all(p.isfinite().all() for p in load_model(tmp_path / "run")[0].parameters())


def test_a_full_disk_in_between_does_not_stop_a_run_and_at_the_end_says_so(corpus, tmp_path, monkeypatch, capsys):
    whole = pretrain.save_state

    def full(file, *args):
        if "step_00000003" in str(file) or "step_00000012" in str(file):
            raise OSError(f"{file} could not be written (No space left on device)")
        whole(file, *args)

    monkeypatch.setattr(pretrain, "save_state", full)
    with pytest.raises(SystemExit, match="last state could not be saved"):
        run(corpus, tmp_path / "run", "--checkpoint-minutes", "0")
    assert capsys.readouterr().out.count("No space left") == 2
    assert [f.name[:13] for f in pretrain.checkpoints_in(tmp_path / "run")] == ["step_00000010", "step_00000011"]


def test_a_full_disk_costs_lines_and_pictures_but_not_the_run(unbroken, corpus, tmp_path, monkeypatch, capsys):
    resource = pytest.importorskip("resource")
    step, calls, (usual, most) = pretrain.training_step, [], resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(*args, **kwargs):
        calls.append(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20 if 3 <= len(calls) <= 6 else usual, most))
        return step(*args, **kwargs)

    monkeypatch.setattr(pretrain, "training_step", filling)
    out = tmp_path / "run"
    try:
        run(corpus, out)
        settings = (out / "settings.json").read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, most))
        with pytest.raises(SystemExit, match="File too large: .*settings.json"):
            run(corpus, out, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
    said = capsys.readouterr().out
    assert said.count("not noted in") == 4 and "metrics.jsonl: [Errno 27] File too large" in said
    assert "step 5: [Errno 27] File too large: '" in said and "samples.txt'" in said
    assert [entry["step"] for entry in pretrain.read_metrics(out)] == [1, 2, 7, 8, 9, 10, 11, 12]
    assert (out / "samples.txt").read_text(encoding="utf-8").count("--- step") == 2
    assert (out / "settings.json").read_bytes() == settings
    assert torch.equal(tensors_of(out)[1]["model.final_norm.weight"],
                       tensors_of(unbroken)[1]["model.final_norm.weight"])  # fmt: skip
    run(corpus, out, "--resume")


def test_ctrl_c_before_the_first_step_is_no_traceback(corpus, tmp_path, monkeypatch, capsys):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "verify_corpus", interrupted)  # it may take minutes
    with pytest.raises(SystemExit) as end:
        run(corpus, tmp_path / "run")
    assert end.value.code == 130 and "--resume goes on" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [b"", b'{"data": "d", "to', b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_state_files_are_mended_and_named(unbroken, corpus, tmp_path, capsys, settings):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    bad = [b"\n", b"null\n", b'{"step": "4", "tokens": 1, "loss": 1}\n', b'{"step": 3}\n', b"\xff\n",
           b"[" * 100_000 + b"\n", lines[4][:20]]  # fmt: skip
    (out / "metrics.jsonl").write_bytes(b"".join([*bad[:3], *lines, *bad[3:]]))
    (out / "settings.json").write_bytes(settings)
    (out / "checkpoints" / "step_00000007.safetensors.part").write_bytes(b"half")
    samples = (out / "samples.txt").read_bytes()
    (out / "samples.txt").write_bytes(samples + b"--- step 15\nof a step that was lost\n--- step 20\nanother\n")
    run(corpus, out, "--resume")
    said = capsys.readouterr().out
    assert f"{out / 'settings.json'} is damaged" in said
    for row in (1, 2, 3, 16, 17, 18, 19):
        assert f"{out / 'metrics.jsonl'}: line {row} is no entry" in said
    assert said.count("is no entry") == 7
    assert (out / "metrics.jsonl").read_bytes() == b"".join(lines)
    assert json.loads((out / "settings.json").read_bytes())["tokens_per_step"] == 512
    assert (out / "samples.txt").read_bytes() == samples
    assert not list(out.rglob("*.part"))


def test_a_damaged_checkpoint_is_passed_over(unbroken, corpus, tmp_path, capsys):
    run(corpus, tmp_path / "run", "--checkpoint-minutes", "0", "--keep", "3")
    *_, older, last = pretrain.checkpoints_in(tmp_path / "run")
    last.write_bytes(last.read_bytes()[:1000])
    flip_an_exponent(older)
    run(corpus, tmp_path / "run", "--resume", "--keep", "1")
    said = capsys.readouterr().out
    assert said.count("taking the one before") == 2 and f"{older} is no whole checkpoint: its checksum" in said
    assert "from step 10" in said
    assert_same_run(tmp_path / "run", unbroken)
    names = sorted(file.name for file in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"{older.name}.damaged", last.name, f"{last.name}.damaged"]


def test_where_no_checkpoint_is_whole_nothing_is_touched(unbroken, corpus, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    for file in pretrain.checkpoints_in(tmp_path / "run"):
        flip_an_exponent(file)
    for _ in range(2):  # neither does the second try begin anew
        with pytest.raises(SystemExit, match="no checkpoint in .* is whole"):
            run(corpus, tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()


def test_a_finished_run_resumed_does_nothing(unbroken, corpus, tmp_path):
    run(corpus, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run(corpus, tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens-per-step", "500"], "500 is no multiple of 128 .*; 512 would be"),
        (["--tokens", "100"], "less than one step"),
        (["--context", "4000"], "no shard of the validation split holds a window of 4000"),
        (["--context", "40000"], "no shard of the train split holds a window of 40000"),
        (["--heads", "5"], "divisible"),
        (["--fsdp"], "torchrun"),
        (["--data", "nowhere"], "manifest.json does not exist"),
    ],
)
def test_settings_that_do_not_fit_are_named(corpus, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run(corpus, tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


NO_NUMBERS = {
    "--layers": ["0", "-2", "1.5"], "--heads": ["0"], "--width": ["0"], "--context": ["0", "-1", "many"],
    "--tokens": ["0", "-5", "1e400", "nan", "1.2.3", "0.5", "9" * 400, "9" * 5000], "--tokens-per-step": ["0", "inf"],
    "--batch": ["0"], "--keep": ["0"], "--eval-every": ["0"], "--eval-windows": ["-1"], "--seed": ["-1", str(2**32)],
    "--lr": ["nan", "inf", "-1e-3", "1e400", ""], "--min-lr": ["nan", "-1"], "--warmup": ["-1", "2.5", "9" * 400],
    "--weight-decay": ["nan", "inf", "-0.1"], "--clip": ["-1", "nan", "inf"], "--dropout": ["1", "-0.1", "nan"],
    "--checkpoint-minutes": ["nan", "-1"], "--peak-tflops": ["0", "nan"],
}  # fmt: skip


@pytest.mark.parametrize(("option", "value"), [(o, value) for o, values in NO_NUMBERS.items() for value in values])
def test_numbers_out_of_bounds_are_refused(corpus, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as refusal:
        run(corpus, tmp_path / "run", f"{option}={value}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert refusal.value.code == 2 and f"error: argument {option}: {value!r} is not a" in said and "at least" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "value"), [("LLM_DEVICE", "toaster"), ("LLM_DEVICE", "meta"), ("LLM_DTYPE", "fp8"),
                                             ("LLM_SCALE", "huge"), ("WORLD_SIZE", "many")])  # fmt: skip
def test_an_environment_that_makes_no_sense_is_named(corpus, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=value):
        run(corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_name_of_a_folder_is_not_the_one_where_we_are(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for options in (["--out", ""], ["--data", " "]):
        with pytest.raises(SystemExit) as refusal:
            run(corpus, tmp_path / "run", *options)
        assert refusal.value.code == 2 and "is no name of a folder" in capsys.readouterr().err
    for options in (["--source", "x", "--out", ""], ["--source", "", "--out", "o"], ["--merge", "", "--out", "o"]):
        with pytest.raises(SystemExit) as refusal:
            prepare_corpus.main(options)
        assert refusal.value.code == 2
    assert not list(tmp_path.iterdir())


def test_a_file_where_checkpoints_belong_is_named_before_the_first_step(corpus, tmp_path):
    (tmp_path / "checkpoints").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="holds a checkpoints, but no checkpoint"):
        run(corpus, tmp_path)
    assert (tmp_path / "checkpoints").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_cannot_be_used_is_named_and_left_alone(corpus, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match=str(tmp_path / "file")):
        run(corpus, tmp_path / "file")
    for options in ([], ["--resume"]):
        with pytest.raises(SystemExit, match="model holds a model.safetensors"):
            run(corpus, tmp_path / "model", *options)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "model" / "model.safetensors").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "tokenizer.json", "chat_template.jinja"])
def test_files_of_another_model_are_not_overwritten(corpus, tmp_path, name):
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match=f"holds a {name}, but no checkpoint"):
        run(corpus, tmp_path)
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine" and not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize("name", ["settings.json", "metrics.jsonl", "samples.txt", "loss.png"])
@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_notes_of_another_program_are_not_overwritten(corpus, tmp_path, name, options):
    (tmp_path / name).write_text('{"config": "mine"}', encoding="utf-8")
    with pytest.raises(SystemExit, match=f"holds a {name}, but no checkpoint"):
        run(corpus, tmp_path, *options)
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"config": "mine"}'
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "pretrain.lock"])


def test_a_run_that_ended_before_its_first_checkpoint_may_begin_anew(unbroken, corpus, tmp_path):
    for name in pretrain.NOTES:
        shutil.copy(unbroken / name, tmp_path)
    run(corpus, tmp_path, "--tokens", "512")
    assert len(pretrain.read_metrics(tmp_path)) == 1


def test_copies_of_checkpoints_are_the_users(unbroken, corpus, tmp_path):
    shutil.copytree(unbroken, tmp_path / "run")
    [last] = pretrain.checkpoints_in(tmp_path / "run")
    names = ["step_00000003_good.safetensors", "step_best.safetensors", "step_best.safetensors.part"]
    for name in names:
        (last.parent / name).write_bytes(b"mine")
    run(corpus, tmp_path / "run", "--resume", "--tokens", "6656", "--keep", "1")
    assert [file.name for file in pretrain.checkpoints_in(tmp_path / "run")] == ["step_00000013.safetensors"]
    assert all((last.parent / name).read_bytes() == b"mine" for name in names)


def test_a_folder_with_another_run_is_not_touched(unbroken, corpus):
    with pytest.raises(SystemExit, match="already holds a run"):
        run(corpus, unbroken)
    with pytest.raises(SystemExit, match="belongs to another model: emb_dim 32"):
        run(corpus, unbroken, "--resume", "--width", "64")
    with pytest.raises(SystemExit, match="a step had 512 tokens, now 1024"):
        run(corpus, unbroken, "--resume", "--tokens-per-step", "1024")


def test_a_corpus_that_is_not_the_manifests_is_named(corpus, tmp_path):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    shard = folder / "train_00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(SystemExit, match="train_00001.bin has 100 bytes"):
        run(folder, tmp_path / "run")
    shard.write_bytes(whole[::-1])
    with pytest.raises(SystemExit, match="train_00001.bin is .*file"):
        run(folder, tmp_path / "run")
    shard.write_bytes(whole)
    BPETokenizer().train("another text of another kind " * 50, 270).save(folder / "tokenizer")
    with pytest.raises(SystemExit, match="merges.txt is .*file"):
        run(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_of_the_computation_itself_is_raised_with_compile_too(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda *args: function(*args))

    def out_of_memory(x):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        pretrain_processes.compile_or_eager(out_of_memory)(1)


def test_compile_where_it_does_not_work_goes_on_without(unbroken, corpus, tmp_path, monkeypatch, capsys):
    def no_compiler(function):
        def compiled(*args):
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", no_compiler)
    run(corpus, tmp_path / "run", "--compile")
    assert "going on without it" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", unbroken)


# ---- what is measured


def test_flops_are_those_of_the_matrix_products():
    config = GPTConfig(500, 32, 64, 4, 3)
    model = GPTModel(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the others it does not count here
        loss = model(torch.zeros(1, 32, dtype=torch.long)).sum()  # the forward pass: a third of the whole
    forward = counter.get_total_flops()
    assert_close(3 * forward / 32, float(pretrain.flops_per_token(config)), rtol=1e-6, atol=0)
    assert loss.requires_grad
    assert abs(pretrain.flops_per_token(GPT2_CONFIGS["gpt2"]) / (6 * 124e6) - 1) < 0.2


def test_utilisation_is_printed_where_the_peak_is_given(corpus, tmp_path):
    run(corpus, tmp_path / "run", "--peak-tflops", "0.1", "--tokens", "1024")
    for entry in pretrain.read_metrics(tmp_path / "run"):
        flops = pretrain.flops_per_token(GPTConfig(320, 32, 32, 2, 2))
        assert_close(entry["mfu"], entry["tokens_per_s"] * flops / 0.1e12, atol=1e-4, rtol=0)
    assert pretrain.peak_flops(torch.device("cpu")) is None


def test_amounts():
    values = {"500": 500, "20M": 20_000_000, "2.5B": 2_500_000_000, "1_000": 1000, "3k": 3000}
    assert {text: pretrain.amount(text) for text in values} == values
    with pytest.raises(SystemExit):
        pretrain.parse_arguments(["--data", "d", "--out", "o", "--model", "gpt2", "--tokens", "many"])
    with pytest.raises(SystemExit):
        pretrain.parse_arguments(["--data", "d", "--out", "o", "--model", "gpt2", "--layers", "2", "--tokens", "1M"])


# ---- the whole chain


def test_from_slimpajamas_layout_to_spam_and_instructions(tmp_path, monkeypatch):
    """Records in SlimPajama's layout -> corpus -> a base of one's own -> a spam classifier and an assistant from it."""
    import zstandard

    text = (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
    paragraphs = [p for p in text.split("\n\n") if len(p) > 200]
    lines = [json.dumps({"text": p, "meta": {"redpajama_set_name": "RedPajamaBook"}}) for p in paragraphs]
    chunk = tmp_path / "slimpajama" / "train" / "chunk1"
    chunk.mkdir(parents=True)
    half = len(lines) // 2
    packed = zstandard.ZstdCompressor().compress(("\n".join(lines[:half]) + "\n").encode())
    (chunk / "example_train_0.jsonl.zst").write_bytes(packed)
    (chunk / "example_train_1.jsonl.gz").write_bytes(gzip.compress(("\n".join(lines[half:]) + "\n").encode()))
    prepare_corpus.main(["--source", str(tmp_path / "slimpajama"), "--train-tokenizer", "400", "--validation", "0.2",
                         "--workers", "1", "--out", str(tmp_path / "corpus")])  # fmt: skip
    run(tmp_path / "corpus", tmp_path / "base", "--context", "256", "--batch", "2")
    for path in (tmp_path / "base", None):
        monkeypatch.setenv("LLM_BASE", str(tmp_path / "base"))
        model, tokenizer = load_base(path)
        assert tokenizer.n_vocab == model.config.vocab_size == 400 and model.config.context_length == 256
        assert tokenizer.decode(tokenizer.encode_ordinary(paragraphs[0])) == paragraphs[0]
        assert model(torch.tensor([tokenizer.encode_ordinary(paragraphs[0])[:32]])).isfinite().all()

    classifier = SpamClassifier(*load_base())
    messages = balance(parse_messages(data.load(data.places.SAMPLES / "sms_messages.tsv")))[:64]
    history = train_classifier(classifier, messages, messages, epochs=4, lr=3e-3, eval_every=4, progress=False)
    assert history.val_loss[-1] < history.val_loss[0] - 0.05
    classifier.save(tmp_path / "spam")
    texts = [text for _, text in messages[:5]]
    assert_close(SpamClassifier.load(tmp_path / "spam").predict(texts)[1], classifier.predict(texts)[1])

    model, tokenizer = load_base()
    entries = check_entries(data.load("instruction_data"))[0][:24]
    loader = instruction_loader(InstructionData(entries, tokenizer, 256), 8)
    before = mean_loss(model, loader, answer_loss)
    train(model, loader, epochs=3, lr=3e-3, loss_fn=answer_loss, progress=False)
    assert mean_loss(model, loader, answer_loss) < before - 0.1
    assert len(respond(model, tokenizer, entries[:2], 8)) == 2
