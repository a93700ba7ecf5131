"""`shared/preference.py`: pairs, DPO and its relatives against TRL, the reward model by hand, bad input."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from shared import data, preference
from shared.checkpoints import COURSE_BASE, load_model, save_model
from shared.gpt import GPTConfig, GPTModel
from shared.instructions import encode_entry, respond
from shared.llama import LlamaConfig, LlamaModel
from shared.lora import apply_lora
from shared.loss import IGNORE
from shared.preference import (
    PreferenceData,
    RewardModel,
    bradley_terry_loss,
    check_pairs,
    collate_pairs,
    dpo_loss,
    implicit_rewards,
    pair_log_probs,
    preference_loss,
    rewards,
    sequence_log_probs,
    train_dpo,
    train_reward,
    win_share,
)
from tools.notebooks import ROOT

PAIRS = [
    {"instruction": "Name a colour.", "input": "", "chosen": "Gladly: blue is one.", "rejected": "Blue, obviously."},
    {"instruction": "Make it plural.", "input": "a dog", "chosen": "Dogs.", "rejected": "Dogs, and next time do it "
     "yourself, will you?"},
    {"instruction": "What is 2 and 3?", "input": "", "chosen": "It is 5, I would say.", "rejected": "5."},
    {"instruction": "Say hello.", "input": "to the king", "chosen": "Good morning, sir!", "rejected": "Hey."},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_model(COURSE_BASE)[1]


def tiny(kind, seed=0, vocab_size=None):
    torch.manual_seed(seed)
    n = vocab_size or load_model(COURSE_BASE)[1].n_vocab
    if kind == "llama":
        return LlamaModel(LlamaConfig(vocab_size=n, context_length=128, emb_dim=16, n_heads=2, n_kv_heads=1, n_layers=2,
                                      hidden_dim=32))  # fmt: skip
    return GPTModel(GPTConfig(vocab_size=n, context_length=128, emb_dim=16, n_heads=2, n_layers=2))


def nudged(model, seed, scale=0.05):
    """A copy with other weights, near enough that losses stay ordinary numbers."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(autouse=True)
def equalities_are_proved_in_float32(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")


BOTH = pytest.mark.parametrize("kind", ["gpt", "llama"])

# TRL: the same weights, pairs and settings must give the same loss.


@pytest.fixture(scope="module")
def trl_loss(tmp_path_factory, tokenizer):
    """trl_loss(pairs, policy, reference, **settings) -> what TRL's DPOTrainer computes for these pairs as one batch."""
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from shared.instructions import format_prompt

    def loss(pairs, policy, reference, **settings):
        folders = [tmp_path_factory.mktemp(name) for name in ("policy", "reference")]
        for folder, model in zip(folders, (policy, reference), strict=True):
            save_model(model, tokenizer, folder)
        policy, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
        theirs = AutoTokenizer.from_pretrained(folders[0])
        rows = [{"prompt": format_prompt(pair), "chosen": pair["chosen"], "rejected": pair["rejected"]}
                for pair in pairs]  # fmt: skip
        arguments = trl.DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("out")), report_to=[], use_cpu=True, bf16=False, max_length=None,
            per_device_train_batch_size=len(pairs), disable_dropout=True, **settings,
        )  # fmt: skip
        trainer = trl.DPOTrainer(policy, reference, args=arguments, processing_class=theirs,
                                 train_dataset=datasets.Dataset.from_list(rows))  # fmt: skip
        rows = [trainer.train_dataset[i] for i in range(len(pairs))]
        for row, pair in zip(rows, pairs, strict=True):  # the prompt ends on a token's border, and eos is appended
            for name in ("chosen", "rejected"):
                ours = encode_entry(pair | {"output": pair[name]}, tokenizer)
                assert (row["prompt_ids"], row[f"{name}_ids"]) == ours
        return trainer.compute_loss(trainer.model, trainer.data_collator(rows)).item()

    return loss


def our_loss(pairs, policy, reference, tokenizer, **settings):
    data = PreferenceData(pairs, tokenizer, 128)
    return preference_loss(policy, *collate_pairs([*data]), pair_log_probs(reference, data), **settings)


@pytest.mark.parametrize(("kind", "ours", "theirs"), [
    ("gpt", {"beta": 0.1}, {"beta": 0.1}),
    ("gpt", {"beta": 0.7}, {"beta": 0.7}),
    ("llama", {"beta": 0.1}, {"beta": 0.1}),
    ("gpt", {"beta": 0.1, "kind": "ipo"}, {"beta": 0.1, "loss_type": ["ipo"]}),
    ("llama", {"beta": 0.5, "kind": "ipo"}, {"beta": 0.5, "loss_type": ["ipo"]}),
    ("gpt", {"beta": 0.3, "kind": "robust", "label_smoothing": 0.2},
     {"beta": 0.3, "loss_type": ["robust"], "label_smoothing": 0.2}),
    ("gpt", {"beta": 0.1, "nll": 0.4}, {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}),
])  # fmt: skip
def test_the_loss_is_that_of_trl(trl_loss, tokenizer, kind, ours, theirs):
    reference = tiny(kind)
    policy = nudged(reference, 1)
    expected = trl_loss(PAIRS, policy, reference, **theirs)
    found = our_loss(PAIRS, policy, reference, tokenizer, **ours).item()
    assert found == pytest.approx(expected, abs=1e-5)
    start = our_loss(PAIRS, reference, reference, tokenizer, **ours).item()
    assert abs(found - start) > 1e-3  # the policies differ enough for the loss to show it


def test_label_smoothing_is_that_of_trl(trl_loss, tokenizer):
    """TRL 1.16 has conservative label smoothing in `aot`, which sorts a batch: of single pairs it is DPO's."""
    reference = tiny("gpt")
    policy, expected = nudged(reference, 1), []
    for pair in PAIRS:
        settings = {"beta": 0.3, "loss_type": ["aot"], "label_smoothing": 0.2}
        expected.append(trl_loss([pair], policy, reference, **settings))
        found = our_loss([pair], policy, reference, tokenizer, beta=0.3, label_smoothing=0.2).item()
        assert found == pytest.approx(expected[-1], abs=1e-5)
    together = our_loss(PAIRS, policy, reference, tokenizer, beta=0.3, label_smoothing=0.2).item()
    assert together == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_ten_steps_are_those_of_trl(trl_loss, tokenizer, tmp_path):
    """Trained by both with the same AdamW at a constant rate, the losses stay together."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from shared.instructions import format_prompt

    policy = tiny("gpt")
    save_model(policy, tokenizer, tmp_path / "policy")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    rows = [{"prompt": format_prompt(p), "chosen": p["chosen"], "rejected": p["rejected"]} for p in PAIRS]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, max_length=None, max_steps=10,
        per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=1e9, adam_beta2=0.95, logging_steps=1, disable_dropout=True,
        beta=0.1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(theirs, args=arguments, train_dataset=Dataset.from_list(rows),
                             processing_class=AutoTokenizer.from_pretrained(tmp_path / "policy"))  # fmt: skip
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    data = PreferenceData(PAIRS, tokenizer, 128)
    history = train_dpo(policy, data, pair_log_probs(policy, data), beta=0.1, lr=1e-3, min_lr=1e-3, epochs=10,
                        weight_decay=0.0, clip=None, batch_size=4, eval_every=1, progress=False)  # fmt: skip
    assert len(expected) == 10 and expected[0] - expected[-1] > 0.01
    assert history.train_loss == pytest.approx(expected, abs=1e-4)


# The parts, by hand.


@BOTH
def test_a_sequence_is_the_sum_of_its_tokens(kind, tokenizer):
    model, data = tiny(kind), PreferenceData(PAIRS, tokenizer, 128)
    found = pair_log_probs(model, data, batch_size=3)
    for i, pair in enumerate(PAIRS):
        for j, name in enumerate(("chosen", "rejected")):
            prompt, answer = encode_entry(pair | {"output": pair[name]}, tokenizer)
            assert answer[-1] == tokenizer.eot_token
            with torch.no_grad():
                log_probs = model(torch.tensor([prompt + answer]))[0].log_softmax(dim=-1)
            by_hand = sum(log_probs[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))
            assert found[i, j].item() == pytest.approx(by_hand, abs=1e-3)


def test_the_sums_of_a_pair_can_be_trained_and_what_counts_nowhere_is_nothing(tokenizer):
    model = tiny("gpt")
    inputs, targets = collate_pairs([*PreferenceData(PAIRS[:1], tokenizer, 128)])
    sums = sequence_log_probs(model, inputs, targets)
    assert sums.shape == (2,) and sums.requires_grad
    none = sequence_log_probs(model, inputs, torch.full_like(targets, IGNORE))
    assert none.tolist() == [0, 0]


def test_dpo_by_hand():
    """log-ratios 1 and -1, beta 0.5: the margin is 1, the loss ln(1 + e^-1)."""
    numbers = [torch.tensor([x]) for x in (-9.0, -13.0, -10.0, -12.0)]
    assert dpo_loss(*numbers, 0.5).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert dpo_loss(*numbers, 0.5, label_smoothing=0.1).item() == pytest.approx(
        0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.e), abs=1e-6)  # fmt: skip
    assert dpo_loss(*numbers, 0.5, kind="ipo").item() == pytest.approx((2 - 1) ** 2, abs=1e-6)  # sums, as in the paper
    per_token = dpo_loss(*numbers, 0.5, kind="ipo", lengths=(torch.tensor([2]), torch.tensor([4])))
    assert per_token.item() == pytest.approx((1 / 2 + 1 / 4 - 1) ** 2, abs=1e-6)
    zero = torch.zeros(3)
    assert dpo_loss(zero, zero, zero, zero, 0.1).item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_gradient_of_dpo_is_weighted_by_how_wrong_the_pair_is():
    """Rafailov et al. 2023, section 4: the weight is beta sigmoid(-margin)."""
    policy = torch.tensor([[-9.0, -13.0], [-10.0, -2.0]], requires_grad=True)
    reference = torch.tensor([[-10.0, -12.0], [-8.0, -8.0]])
    dpo_loss(*policy.T, *reference.T, 0.5).backward()
    margins = 0.5 * ((policy - reference)[:, 0] - (policy - reference)[:, 1]).detach()
    expected = 0.5 * torch.sigmoid(-margins) / 2
    assert_close(policy.grad, torch.stack([-expected, expected], dim=1))


def test_ties_count_half():
    assert win_share(torch.zeros(7)) == 0.5
    assert win_share(torch.tensor([1.0, 0.0, -1.0, -2.0])) == 0.375
    policy = torch.tensor([[-1.0, -2.0]])
    assert implicit_rewards(policy, policy, 0.1).tolist() == [[0.0, 0.0]]
    assert_close(implicit_rewards(policy, policy - 3, 0.1), torch.tensor([[0.3, 0.3]]))


@BOTH
def test_before_training_every_margin_is_zero(kind, tokenizer):
    model, data = tiny(kind), PreferenceData(PAIRS, tokenizer, 128)
    both = pair_log_probs(model, data), pair_log_probs(copy.deepcopy(model), data)
    margins = (both[1] - both[0])[:, 0] - (both[1] - both[0])[:, 1]
    assert margins.tolist() == [0.0] * 4 and win_share(margins) == 0.5


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"kind": "ipo", "beta": 0.5}, {"nll": 0.5}, {"label_smoothing": 0.1}],
                         ids=["dpo", "ipo", "nll", "smoothed"])  # fmt: skip
def test_training_moves_the_margins(kind, dtype, settings, tokenizer, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", dtype)
    model, data = tiny(kind), PreferenceData(PAIRS, tokenizer, 128)
    reference = pair_log_probs(model, data)
    train_dpo(model, data, reference, **settings, lr=3e-3, epochs=15, batch_size=2, progress=False)
    now = pair_log_probs(model, data) - reference
    assert win_share(now[:, 0] - now[:, 1]) == 1.0
    if "nll" in settings:
        assert now[:, 0].mean() > 0  # the chosen answers themselves became likelier


def test_a_seed_fixes_the_order(tokenizer):
    weights = []
    for seed in (0, 0, 1):
        model, data = tiny("gpt"), PreferenceData(PAIRS, tokenizer, 128)
        train_dpo(model, data, pair_log_probs(model, data), lr=1e-2, batch_size=1, seed=seed, progress=False)
        weights.append(model.token_embedding.weight.detach())
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_pairs_keep_their_reference_when_shuffled(tokenizer, monkeypatch):
    data = PreferenceData(PAIRS, tokenizer, 128)
    reference, seen = torch.arange(8.0).view(4, 2), []

    def loss(model, inputs, targets, ref, **_):
        for i in range(len(ref)):
            ids = inputs[i][: len(data[int(ref[i, 0]) // 2][0][0]) - 1]
            assert ids.equal(data[int(ref[i, 0]) // 2][0][0][:-1])
            seen.append(int(ref[i, 0]) // 2)
        return model.token_embedding.weight.sum() * 0

    monkeypatch.setattr(preference, "preference_loss", loss)
    train_dpo(tiny("gpt"), data, reference, epochs=3, batch_size=2, progress=False)
    assert sorted(seen) == sorted([0, 1, 2, 3] * 3)


@pytest.mark.parametrize("architecture", ["gpt", "llama"])
def test_accumulated_pairs_weigh_alike_whatever_their_lengths(tokenizer, architecture):
    pairs = [pair | {"chosen": pair["chosen"] * (1 + 7 * (i % 2))} for i, pair in enumerate(PAIRS)]
    data, models = PreferenceData(pairs, tokenizer, 256), {}
    for batch_size, accumulate in ((4, 1), (2, 2)):
        models[accumulate] = tiny(architecture)
        reference = pair_log_probs(models[accumulate], data)
        train_dpo(models[accumulate], data, reference, batch_size=batch_size, accumulate=accumulate, lr=1e-3, beta=1.0,
                  clip=None, progress=False)  # fmt: skip
    for one, two in zip(models[1].parameters(), models[2].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["attention", "adapter"])
def test_dropout_is_refused(tokenizer, where):
    data, model = PreferenceData(PAIRS, tokenizer, 128), tiny("gpt")
    if where == "adapter":
        apply_lora(model, rank=2, alpha=4, dropout=0.1)
    else:
        model.blocks[0].attention.drop_rate = 0.1
    with pytest.raises(ValueError, match="dropout is on"):
        train_dpo(model, data, torch.zeros(len(data), 2), progress=False)


@pytest.mark.parametrize("architecture", ["gpt", "llama"])
def test_only_the_adapter_learns_a_preference(tokenizer, architecture):
    data, model = PreferenceData(PAIRS, tokenizer, 128), tiny(architecture)
    reference, base = pair_log_probs(model, data), {name: p.clone() for name, p in model.named_parameters()}
    apply_lora(model, rank=2, alpha=4)
    torch.testing.assert_close(pair_log_probs(model, data), reference)
    train_dpo(model, data, reference, lr=1e-2, epochs=2, progress=False)
    state = {name.replace(".base.", "."): p for name, p in model.named_parameters() if not name.endswith((".A", ".B"))}
    assert state.keys() == base.keys() and all(torch.equal(state[name], p) for name, p in base.items())
    assert all(p.any() for name, p in model.named_parameters() if name.endswith(".B"))


# The reward model.


def test_the_reward_loss_by_hand():
    """Rewards 3 and 1: the chosen one wins with probability 1 / (1 + e^-2), and the loss is ln(1 + e^-2)."""
    chosen, rejected = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(by_hand, abs=1e-6)
    assert bradley_terry_loss(chosen + 100, rejected + 100).item() == pytest.approx(by_hand, abs=1e-5)


def test_the_reward_loss_is_a_choice_between_two():
    """The cross-entropy of a choice between two with these rewards as logits."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, generator=generator)
    two = torch.stack([chosen, rejected], dim=1)
    assert_close(bradley_terry_loss(chosen, rejected), F.cross_entropy(two, torch.zeros(50, dtype=torch.long)))


@BOTH
def test_a_reward_reads_the_last_real_token(kind, tokenizer):
    model = RewardModel(tiny(kind))
    torch.nn.init.normal_(model.score.weight)
    rows = [torch.tensor([5, 6, 7, 8]), torch.tensor([5, 6]), torch.tensor([9])]
    together = rewards(model, rows)
    alone = torch.cat([rewards(model, [row]) for row in rows])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        by_hand = model.score(model.backbone.hidden(rows[0][None])[0, -1])
    assert_close(together[:1], by_hand, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_reward_model_learns_its_pairs(kind, dtype, tokenizer, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", dtype)
    model, data = RewardModel(tiny(kind)), PreferenceData(PAIRS, tokenizer, 128)
    rows = [ids for pair in data for ids, _ in pair]
    assert rewards(model, rows).tolist() == [0.0] * 8
    history = train_reward(model, data, lr=1e-2, epochs=20, batch_size=4, eval_every=1, progress=False)
    assert history.train_loss[0] == pytest.approx(math.log(2), abs=1e-4)
    found = rewards(model, rows).view(-1, 2)
    assert win_share(found[:, 0] - found[:, 1]) == 1.0


# Bad input.


@pytest.mark.parametrize("beta", [0, -0.1, math.nan, math.inf])
def test_beta_must_be_above_zero(beta, tokenizer):
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="beta is .*above 0"):
        dpo_loss(zero, zero, zero, zero, beta)
    with pytest.raises(ValueError, match="beta is .*above 0"):
        implicit_rewards(zero, zero, beta)
    data = PreferenceData(PAIRS, tokenizer, 128)
    with pytest.raises(ValueError, match="beta is .*above 0"):
        train_dpo(tiny("gpt"), data, torch.zeros(4, 2), beta=beta)


@pytest.mark.parametrize(("settings", "said"), [
    ({"label_smoothing": 0.5}, "label_smoothing is 0.5; it must be at least 0 and below 0.5"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
    ({"kind": "hinge"}, "kind is 'hinge'; it must be one of sigmoid, robust, ipo"),
    ({"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing is 0.1.*for 'ipo' 0"),
    ({"nll": -1}, "nll is -1"),
    ({"lr": math.nan}, "lr is nan"),
])  # fmt: skip
def test_settings_that_make_no_sense(settings, said, tokenizer):
    data = PreferenceData(PAIRS, tokenizer, 128)
    with pytest.raises(ValueError, match=said):
        train_dpo(tiny("gpt"), data, torch.zeros(4, 2), **settings)


def test_useless_pairs_are_dropped_and_counted():
    rows = [PAIRS[0], {**PAIRS[1], "rejected": " Dogs. "}, {"input": "x", "chosen": "a", "rejected": "b"},
            {**PAIRS[2], "instruction": "  "}, {"instruction": "Say it.", "chosen": "a"}, {**PAIRS[2], "chosen": 7},
            {**PAIRS[0], "instruction": "name  a COLOUR."}, "text", {**PAIRS[2], "input": None}]  # fmt: skip
    pairs, problems = check_pairs(rows)
    assert [pair["instruction"] for pair in pairs] == ["Name a colour.", "What is 2 and 3?"] and pairs[1]["input"] == ""
    said = dict(problems)
    assert "equal" in said[1] and said[2] == "has no prompt (instruction)" and "is empty" in said[3]
    assert said[4] == "has no rejected" and said[5] == "has 7 for chosen" and "as row 0" in said[6]
    assert "is str, not an object" in said[7] and len(said) == 7


def test_equal_answers_are_refused_where_they_would_train(tokenizer):
    with pytest.raises(ValueError, match="pair 1: chosen and rejected are equal"):
        PreferenceData([PAIRS[0], PAIRS[1] | {"rejected": "Dogs."}], tokenizer, 128)


def test_long_pairs_are_left_out_and_counted(tokenizer):
    sizes = [max(len(ids) for ids, _ in pair) for pair in PreferenceData(PAIRS, tokenizer, 128)]
    kept = PreferenceData(PAIRS, tokenizer, max(sizes) - 1)
    assert kept.left_out == [sizes.index(max(sizes))] and len(kept) == 3
    with pytest.raises(ValueError, match="none of 4 pairs fits into 5 tokens"):
        PreferenceData(PAIRS, tokenizer, 5)


def test_damaged_numbers_raise(tokenizer):
    data = PreferenceData(PAIRS, tokenizer, 128)
    model = tiny("gpt")
    with torch.no_grad():
        model.token_embedding.weight[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="log-probabilities of pair 0"):
        pair_log_probs(model, data)
    with pytest.raises(FloatingPointError, match="rewards from row 0 are not finite"):
        rewards(RewardModel(model), [torch.tensor([0, 1])])
    with pytest.raises(ValueError, match="NaN"):
        win_share(torch.tensor([1.0, math.nan]))
    reference, model = torch.zeros(4, 2), tiny("gpt")
    reference[2, 1] = math.nan
    before = model.token_embedding.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the weights are kept"):
        train_dpo(model, data, reference, batch_size=4, progress=False)
    assert model.token_embedding.weight.equal(before)
    with pytest.raises(ValueError, match=r"reference is \[3, 2\]; 4 pairs need \[4, 2\]"):
        train_dpo(model, data, torch.zeros(3, 2))


# The data.


def test_the_sample_is_sound():
    rows = json.loads((ROOT / "shared/data/samples/preferences.json").read_text(encoding="utf-8"))
    pairs, problems = check_pairs(rows)
    assert len(pairs) == 100 and not problems
    assert sum(pair["output"] == pair["chosen"] for pair in pairs) == 50
    assert sum(pair["output"] == pair["rejected"] for pair in pairs) == 50


def test_the_data_set_can_be_had():
    pairs, problems = check_pairs(data.load(data.fetch("preference_data")))
    assert len(pairs) >= 100
    for _, what in problems:
        assert "equal" in what or "same instruction" in what


def test_answers_of_a_tuned_model_are_texts(tokenizer):
    model, pairs = tiny("gpt"), PreferenceData(PAIRS, tokenizer, 128)
    train_dpo(model, pairs, pair_log_probs(model, pairs), progress=False)
    assert all(isinstance(answer, str) for answer in respond(model, tokenizer, PAIRS, 3))
