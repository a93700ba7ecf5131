"""Rewards to gradients: advantages, GAE, the clipped objective and GRPO's loss beside TRL's, the step, the loop."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from shared import policy
from shared.checkpoints import load_base, load_gguf, save_model
from shared.generation import generate
from shared.gpt import GPTConfig, GPTModel
from shared.llama import LlamaConfig, LlamaModel
from tools.notebooks import ROOT

CONFIGS = {
    "gpt": (GPTModel, GPTConfig(60, 40, emb_dim=32, n_heads=4, n_layers=2)),
    "llama": (LlamaModel, LlamaConfig(60, 40, emb_dim=32, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=48)),
}
OFF = torch.amp.GradScaler("cpu", enabled=False)


class Letters:
    """An encoding in which each id is one character, and 59 ends a text."""

    eot_token, n_vocab = 59, 60

    def decode(self, ids):
        return "".join(chr(48 + i) for i in ids)


LETTERS = Letters()


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")  # equalities; what trains is asked for in both formats below


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(3)
    kind, config = CONFIGS[request.param]
    made = kind(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # an untrained model hardly prefers anything
    return made.eval()


def drawn_from(model, seed=0, n=3, **settings):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    return policy.sample_group(model, LETTERS, prompts, n, 6, generator=torch.Generator().manual_seed(seed), **settings)


# Hand-computed cases.


def test_advantages_of_groups_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [0.1, 0.1, 0.1, 0.1]])
    found = policy.advantages_of_groups(rewards)
    sd = math.sqrt(5 / 3)  # of 0, 1, 2, 3: squares 2.25, 0.25, 0.25, 2.25 sum to 5, over 3
    assert_close(found[0], torch.tensor([-1.5, -0.5, 0.5, 1.5]) / (sd + 1e-4))
    assert found[1:].eq(0).all()  # exactly: 0.1 four times has a mean that is not quite 0.1
    assert policy.equal_groups(rewards).tolist() == [False, True, True]
    assert_close(policy.advantages_of_groups(rewards, scale=False)[0], torch.tensor([-1.5, -0.5, 0.5, 1.5]))


def test_a_good_answer_to_a_hard_prompt_weighs_more_only_where_advantages_are_scaled():
    hard, even = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]), torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
    for scale in (True, False):
        size = [policy.advantages_of_groups(group, scale=scale).abs().sum().item() for group in (hard, even)]
        assert size[0] / size[1] == pytest.approx(4.9497 / 7.4833 if scale else 1.75 / 4, rel=1e-3)


@pytest.mark.parametrize("rewards", [torch.ones(3, 1), torch.ones(4), torch.tensor([[1.0, math.nan]]),
                                     torch.tensor([[1.0, math.inf]])])
def test_groups_without_a_comparison_and_rewards_that_are_no_numbers_are_refused(rewards):
    with pytest.raises(ValueError, match="must be finite, in groups of at least 2"):
        policy.advantages_of_groups(rewards)


def test_gae_by_hand():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.2, 0.6])
    # surprises: 0.9*0.2 - 0.5 = -0.32, 0.9*0.6 - 0.2 = 0.34, 1 - 0.6 = 0.4; each later one counts 0.9 * 0.5 = 0.45
    expected = torch.tensor([-0.32 + 0.45 * (0.34 + 0.45 * 0.4), 0.34 + 0.45 * 0.4, 0.4])
    assert_close(policy.gae(rewards, values, gamma=0.9, lam=0.5), expected)
    assert_close(policy.gae(rewards, values, 1.0, 1.0), torch.tensor([0.5, 0.8, 0.4]))  # what came less the value
    assert_close(policy.gae(rewards, values, 1.0, 0.0), torch.tensor([-0.3, 0.4, 0.4]))  # one step's surprise


def test_gae_equals_the_sum_that_defines_it_and_rows_may_end_early():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.rand(2, 4, 9, generator=generator, dtype=torch.float64)
    rewards[2, 6:] = values[2, 6:] = 0
    following = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    surprise = rewards + 0.97 * following - values
    by_sum = torch.stack([sum((0.97 * 0.8) ** k * surprise[:, t + k] for k in range(9 - t)) for t in range(9)], dim=1)
    assert_close(policy.gae(rewards, values, 0.97, 0.8), by_sum)
    assert_close(policy.gae(rewards[2, :6], values[2, :6], 0.97, 0.8), by_sum[2, :6])
    for gamma, lam in ((1.1, 0.5), (0.5, -0.1), (math.nan, 0.5)):
        with pytest.raises(ValueError, match="both must be from 0 to 1"):
            policy.gae(rewards, values, gamma, lam)


@pytest.mark.parametrize(("ratio", "advantage", "objective", "slope"), [
    (1.0, 2.0, 2.0, 2.0),  # at the start: the policy gradient
    (1.1, 2.0, 2.2, 2.2),  # inside the band
    (1.5, 2.0, 2.4, 0.0),  # has risen enough
    (0.5, 2.0, 1.0, 1.0),  # has fallen though it was good: may still be mended
    (0.5, -2.0, -1.6, 0.0),  # has fallen enough
    (1.5, -2.0, -3.0, -3.0),  # has risen though it was bad
])
def test_the_clipped_objective_by_hand(ratio, advantage, objective, slope):
    old = torch.tensor(-1.2)
    new = (old + math.log(ratio)).requires_grad_()
    found = policy.clipped_objective(new, old, torch.tensor(advantage), 0.2)
    found.backward()
    assert (found.item(), new.grad.item()) == pytest.approx((objective, slope), abs=1e-5)


@pytest.mark.parametrize("eps", [0, 1, -0.2, math.nan])
def test_eps_out_of_its_bounds(eps):
    with pytest.raises(ValueError, match="eps is .* between 0 and 1"):
        policy.clipped_objective(*torch.zeros(3, 1), eps)


def test_the_mean_of_the_kl_estimate_is_the_kl():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    k3 = policy.kl_estimate(p.log(), q.log())
    assert (k3 >= 0).all() and policy.kl_estimate(p.log(), p.log()).eq(0).all()
    assert_close((p * k3).sum(), (p * (p / q).log()).sum())


# Samples.


def test_samples_hold_what_generate_draws_and_end_with_the_stop(model):
    found = drawn_from(model, stop_id=11)
    prompts = [[1, 2, 3]] * 3 + [[4]] * 3 + [[5, 6, 7, 8, 9]] * 3
    whole = generate(model, prompts, 6, eos_id=11, temperature=1.0, generator=torch.Generator().manual_seed(0))
    for i, (prompt, new) in enumerate(zip(prompts, whole[:, 5:].tolist(), strict=True)):
        new = new[: new.index(11) + 1] if 11 in new else new
        row = prompt + new
        assert found.tokens[i].tolist() == row + [0] * (found.tokens.shape[1] - len(row))
        assert found.tokens[i, 1:][found.mask[i]].tolist() == new and found.answers[i] == LETTERS.decode(new)
        assert found.mask[i].nonzero()[0].item() == len(prompt) - 1


def test_log_probabilities_are_those_of_each_row_alone(model):
    found = drawn_from(model)
    for tokens, mask, log_probs in zip(found.tokens, found.mask, found.log_probs, strict=True):
        n = int(mask.nonzero()[-1]) + 2
        with torch.no_grad():
            alone = model(tokens[None, :n])[0].log_softmax(dim=-1)
        expected = torch.stack([alone[t, tokens[t + 1]] if mask[t] else torch.tensor(0.0) for t in range(n - 1)])
        assert_close(log_probs[: n - 1], expected, rtol=1e-4, atol=1e-5)
        assert log_probs[n - 1 :].eq(0).all()


def test_rows_drawn_together_change_neither_number_nor_order(model):
    some = drawn_from(model, rows=4)
    assert len(some.tokens) == 9 and [row[0] for row in some.tokens.tolist()] == [1, 1, 1, 4, 4, 4, 5, 5, 5]
    pieces = policy.log_probs_of(model, some.tokens, some.mask, rows=2)
    assert_close(pieces, policy.log_probs_of(model, some.tokens, some.mask, rows=64))


@pytest.mark.parametrize("n", [1, 0, 2.5, True])
def test_a_group_of_one_is_refused(model, n):
    with pytest.raises(ValueError, match="n is .* at least 2"):
        drawn_from(model, n=n)


def test_a_prompt_that_leaves_no_room_is_refused(model):
    with pytest.raises(ValueError, match="has 35 tokens; with 6 new ones at most 34 fit"):
        policy.sample_group(model, LETTERS, [[1], [2] * 35], 2, 6)


# The loss beside TRL's.


@pytest.mark.parametrize("garbage", [1e4, -1e4, math.inf, -math.inf, math.nan])
def test_padding_reaches_neither_the_loss_nor_the_gradient(garbage):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    old, before = torch.full((2, 3), -1.5), torch.full((2, 3), -2.0)
    clean = torch.full((2, 3), -1.4, requires_grad=True)
    dirty = clean.detach().masked_fill(~mask, garbage).requires_grad_()
    losses = [policy.policy_loss(new, old, before, torch.tensor([1.0, -1.0]), mask, beta=0.1) for new in (clean, dirty)]
    for loss in losses:
        loss.sum().backward()
    assert torch.equal(*losses) and torch.equal(clean.grad, dirty.grad) and not dirty.grad[~mask].any()


def test_ids_that_are_no_token_are_never_drawn(model):
    """A vocabulary is often padded to a round number."""
    few = SimpleNamespace(eot_token=0, n_vocab=20, decode=LETTERS.decode)
    drawn = policy.sample_group(model, few, [[1, 2], [3]], 4, 8, generator=torch.Generator().manual_seed(0))
    assert drawn.tokens.max() < 20


@pytest.mark.parametrize(("kind", "loss_type", "beta", "eps"), [
    ("gpt", "grpo", 0.0, 0.2), ("gpt", "grpo", 0.3, 0.1), ("gpt", "dr_grpo", 0.1, 0.2), ("llama", "grpo", 0.1, 0.2),
])
def test_the_loss_and_its_gradient_equal_those_of_trl(kind, loss_type, beta, eps, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    ours, encoding = load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf") if kind == "llama" else load_base()
    save_model(ours, encoding, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.pad_token = tokenizer.eos_token
    config = GRPOConfig(str(tmp_path / "out"), loss_type=loss_type, beta=beta, epsilon=eps, num_generations=3,
                        per_device_train_batch_size=3, max_completion_length=6, report_to="none", use_cpu=True,
                        bf16=False, use_bias_correction_kl=False)  # fmt: skip
    data = Dataset.from_dict({"prompt": ["a"] * 6})
    trainer = GRPOTrainer(theirs, lambda completions, **_: [0.0] * len(completions), config, train_dataset=data,
                          processing_class=tokenizer)  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    prompts = [encoding.encode_ordinary("The old man")] * 2  # of one length: TRL pads prompts on the left
    stop = encoding.encode_ordinary("x.")[-1]
    drawn = policy.sample_group(ours, encoding, prompts, 3, 6, stop_id=stop, generator=torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    old, before = (drawn.log_probs + 0.2 * torch.randn(drawn.log_probs.shape, generator=noise) for _ in range(2))
    better = policy.advantages_of_groups(torch.tensor([[0.0, 1.0, 0.25], [1.0, 0.0, 1.0]])).flatten()
    first = len(prompts[0])
    inputs = {
        "prompt_ids": drawn.tokens[:, :first], "prompt_mask": torch.ones(6, first, dtype=torch.long),
        "completion_ids": drawn.tokens[:, first:], "completion_mask": drawn.mask[:, first - 1 :].long(),
        "advantages": better, "old_per_token_logps": old[:, first - 1 :], "ref_per_token_logps": before[:, first - 1 :],
        "num_items_in_batch": torch.tensor(1),
    }  # fmt: skip
    theirs.train()
    expected = trainer._compute_loss(theirs, inputs)
    expected.backward()
    new = policy.token_log_probs(ours, drawn.tokens, drawn.mask)
    length = 6 if loss_type == "dr_grpo" else None
    found = policy.policy_loss(new, old, before, better, drawn.mask, eps=eps, beta=beta, length=length).mean()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5) and abs(found.item()) > 1e-3
    assert_close(ours.token_embedding.weight.grad, theirs.get_input_embeddings().weight.grad, rtol=1e-3, atol=1e-5)


def test_advantages_equal_those_that_trl_computes():
    from trl.trainer.utils import nanstd

    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    theirs = (rewards - rewards.mean(dim=1, keepdim=True)) / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    assert_close(policy.advantages_of_groups(rewards), theirs)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_beta_out_of_its_bounds(beta):
    with pytest.raises(ValueError, match="beta is .* at least 0"):
        policy.policy_loss(*torch.zeros(3, 2, 2), torch.zeros(2), torch.ones(2, 2).bool(), beta=beta)


# The step.


def gradient_of(model, drawn, rows, better, **settings):
    model = copy.deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    reference = drawn.log_probs - 0.1
    loss, norm = policy.policy_step(model, drawn, reference, better, sgd, OFF, rows=rows, clip=None, **settings)
    return loss, norm, before - torch.nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"beta": 0.0, "length": 6}])
def test_pieces_give_the_gradient_of_the_whole(model, settings):
    drawn, better = drawn_from(model), torch.linspace(-1, 1, 9)
    whole = gradient_of(model, drawn, 64, better, **settings)
    for rows in (1, 4):
        pieces = gradient_of(model, drawn, rows, better, **settings)
        assert pieces[:2] == pytest.approx(whole[:2], rel=1e-4, abs=1e-6)
        assert_close(pieces[2], whole[2], rtol=1e-3, atol=1e-6)
    same = drawn.log_probs
    by_hand = policy.policy_loss(same, same, same - 0.1, better, drawn.mask, **settings)
    assert whole[0] == pytest.approx(by_hand.mean().item(), abs=1e-6)


def test_where_memory_runs_out_the_pieces_become_smaller(model, monkeypatch):
    drawn, better, asked = drawn_from(model), torch.linspace(-1, 1, 9), []
    whole, hidden = gradient_of(model, drawn, 64, better), type(model).hidden

    def small_machine(self, tokens, cache=None):
        asked.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")
        return hidden(self, tokens, cache)

    monkeypatch.setattr(type(model), "hidden", small_machine)
    pieces = gradient_of(model, drawn, 8, better)
    assert asked == [8, 4, 2, 2, 2, 2, 1]
    assert_close(pieces[2], whole[2], rtol=1e-3, atol=1e-6)
    again = drawn_from(model, rows=8)  # samples too
    assert len(again.answers) == 9
    monkeypatch.setattr(type(model), "hidden", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError):
        drawn_from(model)


def test_memory_that_runs_out_in_the_middle_leaves_no_half_gradient():
    calls, undone = [], []

    def work(part):
        calls.append((part.start, part.stop))
        if part.stop - part.start > 2 and part.start >= 4:
            raise torch.OutOfMemoryError("made up")
        return part.stop - part.start

    assert policy.in_pieces(work, 7, 4, start_over=lambda: undone.append(True)) == [2, 2, 2, 1]
    assert calls == [(0, 4), (4, 7), (0, 2), (2, 4), (4, 6), (6, 7)] and undone == [True]
    calls.clear()
    assert policy.in_pieces(work, 7, 4) == [4, 2, 1]  # what is done stays done


def test_the_step_makes_the_better_answer_likelier(model):
    drawn = drawn_from(model)
    better = torch.zeros(9)
    better[4], before = 1.0, drawn.log_probs.sum(dim=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    policy.policy_step(model, drawn, drawn.log_probs, better, sgd, OFF)
    after = policy.log_probs_of(model, drawn.tokens, drawn.mask).sum(dim=1)
    assert after[4] > before[4]


def test_a_gradient_that_is_not_finite_leaves_the_weights(model):
    drawn, before = drawn_from(model), copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="the weights are kept"):
        policy.policy_step(model, drawn, drawn.log_probs, torch.full((9,), math.nan),
                           torch.optim.SGD(model.parameters(), lr=1.0), OFF)  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


# The loop.


def share_of_a(prompts, answers):
    """Rewards answers in which the character of id 10 stands often: easy to learn."""
    return [answer.count(LETTERS.decode([10])) / 6 for answer in answers]


PROMPTS = [[1, 2], [3], [4, 5, 6]]
QUICK = {"steps": 25, "n_prompts": 3, "n": 8, "max_new_tokens": 6, "lr": 3e-3, "progress": False}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_is_learned_and_the_same_seed_gives_the_same_run(model, dtype, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", dtype)
    twin = copy.deepcopy(model)
    history = policy.train_policy(model, LETTERS, PROMPTS, share_of_a, **QUICK)
    assert history["reward"][-1] > history["reward"][0] + 0.2 and history["kl"][-1] > history["kl"][0]
    assert abs(history["kl"][0]) < 1e-3 and {len(values) for values in history.values()} == {25}
    assert policy.train_policy(twin, LETTERS, PROMPTS, share_of_a, **QUICK) == history


def test_kl_holds_the_model_near_its_reference(model):
    far = policy.train_policy(copy.deepcopy(model), LETTERS, PROMPTS, share_of_a, **QUICK, beta=0.0)
    near = policy.train_policy(copy.deepcopy(model), LETTERS, PROMPTS, share_of_a, **QUICK, beta=5.0)
    assert near["kl"][-1] < far["kl"][-1] / 2


def test_several_updates_on_the_same_answers_and_other_advantages(model):
    quick = QUICK | {"steps": 3}
    history = policy.train_policy(model, LETTERS, PROMPTS, share_of_a, **quick, epochs=3, length=6,
                                  advantages=partial(policy.advantages_of_groups, scale=False))  # fmt: skip
    assert len(history["reward"]) == 3


def test_equal_rewards_change_nothing_and_are_counted(model, capsys):
    before = copy.deepcopy(model.state_dict())

    def constant(prompts, answers):
        return [0.1] * len(answers)

    history = policy.train_policy(model, LETTERS, PROMPTS, constant, **QUICK | {"steps": 2}, beta=0.0)
    assert history["equal"] == [1.0, 1.0] and "6 of 6 groups had equal rewards" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


@pytest.mark.parametrize(("reward", "expected"), [
    (lambda prompts, answers: [1.0] * (len(answers) - 1) + [math.nan], "is nan; it must be finite"),
    (lambda prompts, answers: [math.inf] + [1.0] * (len(answers) - 1), "is inf; it must be finite"),
    (lambda prompts, answers: [1.0], r"one number for each of 24 answers; got \[1\]"),
    (lambda prompts, answers: 0.5, r"one number for each of 24 answers; got \[\]"),
])
def test_a_bad_reward_is_one_clear_error(model, reward, expected):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=expected):
        policy.train_policy(model, LETTERS, PROMPTS, reward, **QUICK)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_the_reward_sees_the_texts_of_prompts_and_answers(model):
    seen = []

    def look(prompts, answers):
        seen.extend(zip(prompts, answers, strict=True))
        return torch.arange(len(answers)).float()

    policy.train_policy(model, LETTERS, PROMPTS, look, **QUICK | {"steps": 1})
    assert {prompt for prompt, _ in seen} == {LETTERS.decode(ids) for ids in PROMPTS} and len(seen) == 24


@pytest.mark.parametrize("setting", [{"n": 1}, {"beta": -1.0}, {"eps": 0.0}, {"steps": 0}, {"lr": math.nan},
                                     {"epochs": 0}, {"rows": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_their_bounds(model, setting):
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"{name} is "):
        policy.train_policy(model, LETTERS, PROMPTS, share_of_a, **QUICK | setting)


def test_a_head_that_is_wrapped_is_called(model):
    """An adapter or a 4-bit layer in the head's place is used, not passed by."""
    drawn, head = drawn_from(model), model.head
    model.head = torch.nn.Sequential(head)
    wrapped = SimpleNamespace(hidden=model.hidden, head=lambda x: 2 * head(x))
    assert_close(policy.token_log_probs(model, drawn.tokens, drawn.mask), drawn.log_probs)
    assert not torch.allclose(policy.token_log_probs(wrapped, drawn.tokens, drawn.mask), drawn.log_probs)


# What a breaker found.


def test_a_reference_that_learns_with_the_model_is_refused(model):
    with pytest.raises(ValueError, match="the KL would stay 0"):
        policy.train_policy(model, LETTERS, PROMPTS, share_of_a, steps=1, reference=model, progress=False)


@pytest.mark.parametrize("rows", [0, -1])
def test_pieces_of_nothing_are_refused(model, rows):
    drawn = drawn_from(model)
    with pytest.raises(ValueError, match="rows is"):
        policy.log_probs_of(model, drawn.tokens, drawn.mask, rows)


@pytest.mark.parametrize("length", [-5, 0])
def test_a_length_that_is_none(length):
    with pytest.raises(ValueError, match=f"length is {length}"):
        policy.policy_loss(*torch.zeros(3, 2, 2), torch.zeros(2), torch.ones(2, 2).bool(), length=length)


@pytest.mark.parametrize("clip", [0, -1.0])
def test_a_bound_of_the_gradient_that_is_none(model, clip):
    drawn, optimizer = drawn_from(model), torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="clip is"):
        policy.policy_step(model, drawn, drawn.log_probs, torch.ones(len(drawn.tokens)), optimizer,
                           torch.amp.GradScaler("cpu", enabled=False), clip=clip)  # fmt: skip


def test_a_prompt_that_is_too_long_is_found_before_the_first_step(model):
    before = [p.clone() for p in model.parameters()]
    for bad, said in (([2] * 40, "has 40 tokens"), ([], "empty")):
        with pytest.raises(ValueError, match=said):
            policy.train_policy(model, LETTERS, [*PROMPTS] * 20 + [bad], share_of_a, steps=1, n_prompts=1, n=2,
                                max_new_tokens=6, progress=False)  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_whole_numbers_are_as_good_as_others_in_gae():
    rewards, values = torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.int64)
    assert policy.gae(rewards, values, gamma=1, lam=0.5).tolist() == [0.25, 0.5, 1.0]


def test_a_gradient_that_was_left_over_is_not_used(model):
    drawn, models = drawn_from(model), [copy.deepcopy(model), copy.deepcopy(model)]
    for i, one in enumerate(models):
        optimizer = torch.optim.SGD(one.parameters(), lr=1.0)
        if i:
            one.token_embedding.weight.sum().backward()
        better = torch.linspace(-1, 1, len(drawn.tokens))
        policy.policy_step(one, drawn, drawn.log_probs, better, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    for one, two in zip(*(m.parameters() for m in models), strict=True):
        assert_close(one, two, rtol=0, atol=0)
