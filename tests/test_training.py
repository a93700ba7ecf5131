"""Optimizer, schedule, step, loop, stop and resume."""

import math
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from shared import training
from shared.batches import create_dataloader
from shared.gpt import GPTConfig, GPTModel
from shared.loss import IGNORE, mean_loss, next_token_loss
from shared.resume import load_state
from shared.training import learning_rate, make_optimizer, train, training_step

CONFIG = GPTConfig(60, 16, 32, 4, 2, drop_rate=0.1)
IDS = torch.randint(0, 60, (1500,), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("clip", [0.01, 1e6, None])
def test_clipping_bounds_the_step_and_the_norm_is_that_before(clip):
    model, batch = make(config=replace(CONFIG, drop_rate=0.0)), (IDS[None, :16], IDS[None, 1:17])
    gradients = torch.autograd.grad(in_float32(model, *batch), list(model.parameters()))
    gradient = torch.cat([g.flatten() for g in gradients])
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    scaler, sgd = torch.amp.GradScaler("cpu", enabled=False), torch.optim.SGD(model.parameters(), lr=1.0)
    _, _, norm = training_step(model, [batch], in_float32, sgd, scaler, clip=clip)
    step = before - torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert_close(norm, gradient.norm().item(), rtol=1e-5, atol=0)
    assert_close(step, gradient * (0.01 / norm if clip == 0.01 else 1), rtol=1e-3, atol=1e-6)


def test_a_gradient_that_was_left_over_is_not_used():
    batch, models = (IDS[None, :16], IDS[None, 1:17]), [make(config=replace(CONFIG, drop_rate=0.0)) for _ in range(2)]
    models[1].token_embedding.weight.sum().backward()  # of a step that was broken off, or of a cell before
    for model in models:
        sgd, scaler = torch.optim.SGD(model.parameters(), lr=1.0), torch.amp.GradScaler("cpu", enabled=False)
        training_step(model, [batch], in_float32, sgd, scaler, None)
    assert same_weights(*models)


def test_a_model_of_which_nothing_trains_is_one_sentence():
    with pytest.raises(ValueError, match="no weight of the model trains"):
        make_optimizer(make().requires_grad_(False))


@pytest.mark.parametrize("clip", [0, -1.0, math.nan])
def test_a_bound_that_is_none(clip):
    with pytest.raises(ValueError, match="clip is"):
        training.take_step(1.0, torch.optim.SGD(make().parameters(), lr=1.0), None, clip)


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


def test_mean_loss_counts_every_target_once():
    model = make().eval()
    x, y = IDS[:48].view(3, 16), IDS[1:49].view(3, 16).clone()
    y[2, 1:] = IGNORE
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    model.train()
    batches = [(x[:2], y[:2]), (x[2:], y[2:]), (x, torch.full_like(y, IGNORE))]
    assert abs(mean_loss(model, batches, in_float32) - expected) < 1e-5
    assert model.training
    first = mean_loss(model, batches, in_float32, max_batches=1)
    assert abs(first - mean_loss(model, batches[:1], in_float32)) < 1e-6 < abs(first - expected)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        mean_loss(model, [])


@pytest.mark.parametrize("mode", [True, False])
def test_mean_loss_restores_the_mode_also_after_an_error(mode):
    model, modes = make().train(mode), []

    def broken(model, inputs, targets):
        modes.append(model.training)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        mean_loss(model, loaders()[1], broken)
    assert modes == [False] and model.training == mode and torch.is_grad_enabled()


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
    saving = dict(checkpoint=file, accumulate=accumulate)
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_gradient_that_is_not_finite_stops_and_keeps_the_weights(value, clip):
    model, before = make(), make()
    model.blocks[0].norm1.weight.register_hook(lambda gradient: gradient * value)
    with pytest.raises(FloatingPointError, match="gradient's norm is"):
        train(model, loaders()[0], clip=clip, progress=False)
    assert same_weights(model, before) and all(p.grad is None for p in model.parameters())


def test_weights_that_an_update_broke_do_not_take_the_place_of_a_good_checkpoint(tmp_path, monkeypatch):
    file, step, model = tmp_path / "c.safetensors", training.training_step, make()

    def breaking(model, *args):
        result = step(model, *args)
        if file.exists():  # after a good one
            with torch.no_grad():
                model.final_norm.bias[3] = math.inf
        return result

    monkeypatch.setattr(training, "training_step", breaking)
    with pytest.raises(FloatingPointError, match="model.final_norm.bias is not finite: it is not saved, .*untouched"):
        train(model, loaders()[0], checkpoint=file, eval_every=1, progress=False)
    assert load_state(file, make()).steps_done == 1


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        train(make(), loaders()[0], epochs=0, progress=False)
    with pytest.raises(ValueError, match="1000 to a step"):
        train(make(), loaders()[0], accumulate=1000, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1e-3), ("lr", torch.nan), ("lr", torch.inf), ("min_lr", -1.0), ("min_lr", torch.nan), ("warmup_steps", -1),
     ("weight_decay", -0.1), ("weight_decay", torch.inf), ("clip", -1.0), ("clip", 0), ("clip", torch.nan),
     ("accumulate", 0), ("accumulate", -2), ("eval_every", 0), ("accumulate", 1.5), ("eval_every", 2.0),
     ("epochs", 1.5), ("epochs", -1), ("epochs", torch.inf), ("lr", "0.001"), ("lr", None)],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_before_a_step(tmp_path, name, value):
    model = make()
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; it must be"):
        train(model, *loaders(), checkpoint=tmp_path / "c.safetensors", progress=False, **{name: value})
    assert same_weights(model, make()) and not list(tmp_path.iterdir())


def test_a_run_without_a_file_cannot_be_resumed():
    with pytest.raises(ValueError, match="needs `checkpoint`"):
        train(make(), *loaders(), progress=False, resume=True)


def test_the_loss_plot_shows_the_baseline_and_the_perplexity(monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "show", lambda: None)
    for val_loss, baseline, names in (([6.5, 6.0], 5.5, ["training", "validation", "counted bigrams, 5.50"]),
                                      ([None, None], None, ["training"])):  # fmt: skip
        training.plot_losses(SimpleNamespace(step=[1, 2], train_loss=[7.0, 5.0], val_loss=val_loss), baseline)
        axis = plt.gca()
        assert [line.get_label() for line in axis.get_lines()] == names
        (right,) = axis.child_axes
        label = right.yaxis.get_major_formatter()
        assert (label(0, 0), label(math.log(20.25), 0), label(math.log(1416), 0)) == ("1.0", "20", "1,416")
        plt.close("all")
