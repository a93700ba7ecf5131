"""Loss, optimizer, schedule, loop, checkpoint and resume."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from shared import training
from shared.batches import create_dataloader
from shared.gpt import GPTConfig, GPTModel
from shared.training import (
    IGNORE,
    LinearCrossEntropy,
    compile_or_eager,
    evaluate,
    learning_rate,
    load_checkpoint,
    make_optimizer,
    next_token_loss,
    save_checkpoint,
    train,
    training_step,
)

CONFIG = GPTConfig(60, 16, 32, 4, 2, drop_rate=0.1)
IDS = torch.randint(0, 60, (1500,), generator=torch.Generator().manual_seed(0))
ROOT = Path(__file__).resolve().parents[1]


def make(seed=1, config=CONFIG):
    torch.manual_seed(seed)
    return GPTModel(config)


def loaders():
    return create_dataloader(IDS, 16, 4), create_dataloader(IDS[:300], 16, 4, shuffle=False)


def in_float32(model, inputs, targets):
    """`next_token_loss` in float32 whatever the machine trains in: for what must be equal to rounding."""
    with torch.autocast("cpu", enabled=False):
        return next_token_loss(model, inputs, targets)


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize("masked", [0, 5, 20])
def test_linear_cross_entropy_equals_pytorchs(chunk, masked):
    torch.manual_seed(0)
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(0, 30, (20,))
    targets[:masked] = IGNORE
    if masked == 20:
        loss = LinearCrossEntropy.apply(hidden, weight, targets, chunk)
        assert loss == 0 and torch.autograd.grad(loss, hidden)[0].abs().max() == 0
        return
    ours = LinearCrossEntropy.apply(hidden, weight, targets, chunk)
    theirs = F.cross_entropy(hidden @ weight.T, targets)
    assert_close(ours, theirs)
    for mine, reference in zip(torch.autograd.grad(3 * ours, (hidden, weight)),
                               torch.autograd.grad(3 * theirs, (hidden, weight)), strict=True):  # fmt: skip
        assert_close(mine, reference)


def test_linear_cross_entropy_passes_gradcheck():
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, IGNORE, 2, 1])
    loss = F.cross_entropy(hidden @ weight.T, targets)
    loss.backward()
    expected = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    LinearCrossEntropy.apply(hidden, weight, targets, 2).backward()
    assert_close((hidden.grad, weight.grad), expected, rtol=1e-6, atol=1e-7)


def test_loss_never_holds_all_logits_in_float32():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, (list, tuple)) else [out]) if torch.is_tensor(t))
            return out

    model = make(config=GPTConfig(5000, 512, 8, 1, 1))
    tokens = torch.randint(0, 5000, (4, 512))
    with Watch():
        next_token_loss(model, tokens, tokens).backward()
    assert max(sizes) <= 512 * 5056 < 4 * 512 * 5000  # 5056: 5000 in steps of 64


def test_linear_cross_entropy_of_the_hopeless_and_the_broken():
    hidden = torch.tensor([[1000.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    targets = torch.tensor([2, 0])
    exact = F.cross_entropy(hidden @ weight.T, targets)
    with torch.no_grad():
        assert_close(LinearCrossEntropy.apply(hidden.detach(), weight.detach(), targets, 512), exact)
    loss = LinearCrossEntropy.apply(hidden, weight, targets, 512)
    assert exact > 900  # where the probability itself is 0 in float32
    assert_close(loss, exact)
    for mine, theirs in zip(torch.autograd.grad(loss, (hidden, weight), retain_graph=True),
                            torch.autograd.grad(exact, (hidden, weight)), strict=True):  # fmt: skip
        assert_close(mine, theirs)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(loss, (hidden, weight))
    for broken in (torch.nan, torch.inf):
        assert LinearCrossEntropy.apply(hidden * broken, weight, targets, 512).isnan()


@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("tied", [True, False])
def test_few_rows_of_a_tied_embedding_need_no_matrix_of_zeros(tied, rows):
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(str(function))
            return function(*args, **(kwargs or {}))

    seen = set()
    model = make(config=replace(CONFIG, vocab_size=2000, drop_rate=0.0, tie_weights=tied))
    x, y = torch.randint(0, 2000, (2, rows, 16))
    x[:, 3] = x[:, 5]  # a token that comes twice
    plain = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    expected = torch.autograd.grad(plain, list(model.parameters()))
    for times in (1, 2):  # gradients add up
        with Watch():
            next_token_loss(model, x, y).backward()
        assert_close([p.grad for p in model.parameters()], [times * g for g in expected])
    sparse = any("sparse" in function for function in seen)
    assert sparse == (tied and rows * 16 * 16 < 2000)


@pytest.mark.parametrize("vocab_size", [CONFIG.vocab_size, 2000])  # 2000: with the rows of the lookup alone
def test_the_compiled_loss_equals_the_plain_one(vocab_size):
    model = make(config=replace(CONFIG, vocab_size=vocab_size, drop_rate=0.0))
    x, y = IDS[:64].view(4, 16), IDS[1:65].view(4, 16)
    grads = []
    for loss_fn in (next_token_loss, torch.compile(next_token_loss, backend="aot_eager")):
        model.zero_grad()
        loss_fn(model, x, y).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert_close(*grads)


def test_frozen_head_gets_no_gradient():
    model = make(config=replace(CONFIG, tie_weights=False))
    model.head.weight.requires_grad_(False)
    next_token_loss(model, IDS[None, :16], IDS[None, 1:17]).backward()
    assert model.head.weight.grad is None and model.token_embedding.weight.grad is not None


def test_accumulated_gradient_equals_that_of_the_large_batch():
    whole, parts = make(config=replace(CONFIG, drop_rate=0.0)), make(config=replace(CONFIG, drop_rate=0.0))
    x, y = IDS[:64].view(4, 16), IDS[1:65].view(4, 16).clone()
    y[3, 2:] = IGNORE  # the last batch has fewer targets that count
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    results = [
        training_step(model, batches, in_float32, torch.optim.SGD(model.parameters(), lr=1.0), scaler, None)
        for model, batches in ((whole, [(x, y)]), (parts, [(x[:1], y[:1]), (x[1:3], y[1:3]), (x[3:], y[3:])]))
    ]
    assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == 64
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert_close(a, b)


def test_clipping_bounds_the_step():
    model = make(config=replace(CONFIG, drop_rate=0.0))
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batch = (IDS[None, :16], IDS[None, 1:17])
    training_step(model, [batch], next_token_loss, torch.optim.SGD(model.parameters(), lr=1.0), scaler, clip=0.01)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert_close((after - before).norm().item(), 0.01, rtol=1e-2, atol=0)


def test_only_matrices_decay():
    groups = make_optimizer(make(), weight_decay=0.3).param_groups
    assert {p.dim() for p in groups[0]["params"]} == {2} and groups[0]["weight_decay"] == 0.3
    assert {p.dim() for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0
    assert sum(len(g["params"]) for g in groups) == len(list(make().parameters()))


def test_learning_rate_follows_the_formula():
    rates = [learning_rate(step, 100, 1.0, warmup_steps=10, final=0.1) for step in range(101)]
    assert_close(rates[:10], [0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and abs(rates[55] - 0.55) < 1e-9 and abs(rates[100] - 0.1) < 1e-9
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert {learning_rate(step, 50, 0.3, 5, final=0.3) for step in range(5, 50)} == {0.3}


def test_evaluate_counts_every_target_once():
    model = make().eval()
    x, y = IDS[:48].view(3, 16), IDS[1:49].view(3, 16).clone()
    y[2, 1:] = IGNORE
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    model.train()
    assert abs(evaluate(model, [(x[:2], y[:2]), (x[2:], y[2:])], in_float32) - expected) < 1e-5
    assert model.training
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(model, [])


@pytest.mark.parametrize("number_format", ["float32", "bfloat16"])
def test_training_learns_and_reports(number_format, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", number_format)
    ids = torch.arange(60).repeat(40)  # after i comes i + 1
    model = make(config=replace(CONFIG, drop_rate=0.0))
    loader, val = create_dataloader(ids, 16, 8), create_dataloader(ids[:400], 16, 8, shuffle=False)
    history = train(model, loader, val, epochs=6, lr=1e-2, warmup_steps=10, eval_every=20, progress=False)
    assert history.val_loss[-1] < 0.1 < history.val_loss[0]
    assert history.steps_done == 6 * len(loader) == history.step[-1]
    assert history.tokens_done == history.steps_done * 8 * 16 == history.tokens[-1]


OPTIONS = dict(epochs=2, lr=1e-3, warmup_steps=5, eval_every=10, progress=False)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_cut_in_two_equals_an_unbroken_one(tmp_path, monkeypatch, accumulate):
    unbroken, file = make(), tmp_path / "run.safetensors"
    full = train(unbroken, *loaders(), **OPTIONS, accumulate=accumulate)
    step, calls = training.training_step, []

    def power_cut(*args):
        calls.append(1)
        if len(calls) == 11:
            raise RuntimeError("power cut")
        return step(*args)

    monkeypatch.setattr(training, "training_step", power_cut)
    saving = dict(checkpoint=file, checkpoint_every=7, accumulate=accumulate)
    with pytest.raises(RuntimeError, match="power cut"):
        train(make(), *loaders(), **OPTIONS, **saving)
    monkeypatch.setattr(training, "training_step", step)
    resumed = make(seed=99)
    rest = train(resumed, *loaders(), **OPTIONS, **saving, resume=True)
    assert same_weights(unbroken, resumed)
    assert full == rest


def test_ctrl_c_keeps_the_model_and_can_be_resumed(tmp_path):
    unbroken, file = make(), tmp_path / "run.safetensors"
    train(unbroken, *loaders(), **OPTIONS)
    model, seen = make(), []

    def loss(model, *batch):
        seen.append(1)
        if len(seen) == 9:
            signal.raise_signal(signal.SIGINT)
        return next_token_loss(model, *batch)

    history = train(model, loaders()[0], **OPTIONS, loss_fn=loss, checkpoint=file)
    assert history.interrupted and history.steps_done == 9
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    history = train(model, *loaders(), **OPTIONS, checkpoint=file, resume=True)
    assert not history.interrupted and same_weights(unbroken, model)


def test_training_works_outside_the_main_thread():
    done = []
    thread = threading.Thread(target=lambda: done.append(train(make(), loaders()[0], epochs=1, progress=False)))
    thread.start()
    thread.join()
    assert done and done[0].steps_done == len(loaders()[0])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_weights():
    model, before = make(), make()
    with pytest.raises(FloatingPointError, match="nan"):
        train(model, loaders()[0], loss_fn=lambda m, x, y: next_token_loss(m, x, y) * float("nan"), progress=False)
    assert same_weights(model, before)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        train(make(), loaders()[0], epochs=0, progress=False)
    with pytest.raises(ValueError, match="1000 to a step"):
        train(make(), loaders()[0], accumulate=1000, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1e-3), ("lr", torch.nan), ("lr", torch.inf), ("min_lr", -1.0), ("min_lr", torch.nan), ("warmup_steps", -1),
     ("weight_decay", -0.1), ("weight_decay", torch.inf), ("clip", -1.0), ("clip", 0), ("clip", torch.nan),
     ("accumulate", 0), ("accumulate", -2), ("eval_every", 0), ("eval_batches", 0), ("checkpoint_every", 0)],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_before_a_step(tmp_path, name, value):
    model = make()
    with pytest.raises(ValueError, match=f"^{name} is {value}; it must be"):
        train(model, *loaders(), checkpoint=tmp_path / "c.safetensors", progress=False, **{name: value})
    assert same_weights(model, make()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"resume": True}, {"checkpoint_every": 5}])
def test_a_run_without_a_file_can_neither_be_saved_nor_resumed(options):
    with pytest.raises(ValueError, match="need `checkpoint`"):
        train(make(), *loaders(), progress=False, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_round_trip(tmp_path, tied):
    config, file = replace(CONFIG, tie_weights=tied), tmp_path / "c.safetensors"
    model = make(config=config)
    optimizer = make_optimizer(model)
    next_token_loss(model, IDS[None, :16], IDS[None, 1:17]).backward()
    optimizer.step()
    save_checkpoint(file, model, optimizer)
    other = make(seed=2, config=config)
    other_optimizer = make_optimizer(other, lr=9.0)
    load_checkpoint(file, other, other_optimizer)
    assert same_weights(model, other)
    assert (other.head.weight is other.token_embedding.weight) == tied
    assert other_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        a, b = optimizer.state[p], other_optimizer.state[q]
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) and a["step"] == b["step"]


def test_wrong_and_damaged_checkpoints_are_refused_and_change_nothing(tmp_path):
    file, model, before = tmp_path / "c.safetensors", make(), make()
    with pytest.raises(FileNotFoundError, match="c.safetensors"):
        load_checkpoint(file, model)
    save_checkpoint(file, make(seed=5, config=replace(CONFIG, emb_dim=64)))
    with pytest.raises(ValueError, match=r"emb_dim 64 \(here 32\)"):
        load_checkpoint(file, model)
    save_checkpoint(file, make(seed=5))
    whole = file.read_bytes()
    for damaged in (b"", b"junk", whole[:3], whole[:2000], whole[:-1], b"\xff" * 8 + whole[8:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="no whole checkpoint"):
            load_checkpoint(file, model)
    assert same_weights(model, before)


def test_one_wrong_bit_in_a_checkpoint_is_noticed_wherever_it_is(tmp_path):
    file, before = tmp_path / "c.safetensors", make()
    model, optimizer = make(), make_optimizer(make())
    save_checkpoint(file, make(seed=5), make_optimizer(make(seed=5)), history=training.History(steps_done=3))
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    _, state = training.read_checkpoint(file)
    assert state["history"]["steps_done"] == 3
    names = whole.index(b'"state"')  # behind it: what the metadata say of the run, then the tensors' names
    for position in [*range(8), *range(names, header, 31), *range(header, len(whole), 1997), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="c.safetensors is no whole checkpoint"):
            load_checkpoint(file, model, optimizer)
    assert same_weights(model, before)


def test_another_optimizer_is_refused_before_the_weights_are_changed(tmp_path):
    model = make()
    save_checkpoint(tmp_path / "c.safetensors", make(seed=5), make_optimizer(make(seed=5)))
    with pytest.raises(ValueError, match="parameter group"):
        load_checkpoint(tmp_path / "c.safetensors", model, torch.optim.SGD(model.parameters()))
    assert same_weights(model, make())


def test_a_full_disk_harms_nothing(tmp_path, monkeypatch):
    file, model = tmp_path / "c.safetensors", make()
    save_checkpoint(file, model)
    before = file.read_bytes()

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "save_file", full)
    with pytest.raises(OSError, match="No space left.*untouched"):
        save_checkpoint(file, make(seed=3))
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_kill_in_the_middle_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    file = tmp_path / "c.safetensors"
    code = (
        "import sys, torch\n"
        "from shared.gpt import GPTConfig, GPTModel\nfrom shared.training import save_checkpoint\n"
        "model = GPTModel(GPTConfig(20000, 16, 128, 4, 2))\n"
        "for i in range(10**6):\n"
        "    torch.nn.init.constant_(model.final_norm.bias, float(i))\n"
        f"    save_checkpoint({str(file)!r}, model)\n"
        "    print(i, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "5":
            break
    partial = tmp_path / "c.safetensors.partial"
    deadline = time.monotonic() + 30
    while not partial.exists() and time.monotonic() < deadline:
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    model = GPTModel(GPTConfig(20000, 16, 128, 4, 2))
    load_checkpoint(file, model)
    assert model.final_norm.bias[0] >= 5 and len(model.final_norm.bias.unique()) == 1


def test_compile_falls_back_to_eager(monkeypatch, capsys):
    def broken(function):
        def compiled(*args):
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    assert compile_or_eager(lambda x: x + 1)(2) == 3
    assert "going on without it" in capsys.readouterr().out


def test_evaluation_computes_no_gradient():
    model, products = make(), []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            products.extend([func] * (func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)))
            return func(*args, **(kwargs or {}))

    tokens = torch.randint(0, model.config.vocab_size, (2, 8))
    with torch.no_grad(), Count():
        next_token_loss(model, tokens, tokens)
    assert len(products) == 1  # of the head: hidden @ weight.T, and neither of the two that make gradients
