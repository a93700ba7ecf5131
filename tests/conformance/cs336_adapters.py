"""Stands in the place of the assignment's `tests/adapters.py`: its functions, each answered by code of this course.

What is done here is packing: shapes, names, a padding id. The numbers come from `shared`. Where the course has no such
function, or another one on purpose, the test is skipped and says why. The assignment's shapes: B rows, T tokens.
"""

from types import SimpleNamespace

import pytest
import torch

from shared.instructions import collate_instructions
from shared.loss import IGNORE
from shared.policy import advantages_of_groups, clipped_objective, policy_loss, token_log_probs
from shared.preference import PreferenceData, collate_pairs, dpo_loss, sequence_log_probs

NO_REINFORCE = "not ours: at a ratio of 1 our clipped objective has the gradient of -A log p, but not its value"
NO_ENTROPY = "not ours: we estimate the entropy from the drawn tokens' own log-probabilities"
NO_SFT_STEP = "not ours: we divide by the batch's answer tokens, as transformers does; the assignment by a constant"


def parts_of(model):
    """A model of transformers in the two parts that our functions ask for."""
    return SimpleNamespace(hidden=lambda tokens: model.base_model(tokens).last_hidden_state,
                           head=model.get_output_embeddings())  # fmt: skip


def parts_of_tokenizer(tokenizer):
    """A tokenizer of transformers under the two names that our functions ask for."""
    return SimpleNamespace(encode_ordinary=lambda text: tokenizer.encode(text, add_special_tokens=False),
                           eot_token=tokenizer.eos_token_id)  # fmt: skip


# test_dpo.py


def run_compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, beta, prompt, response_chosen, response_rejected):
    pair = {"instruction": prompt, "input": "", "chosen": response_chosen, "rejected": response_rejected}
    batch = collate_pairs(PreferenceData([pair], parts_of_tokenizer(tokenizer), max_tokens=1024))
    policy, reference = (sequence_log_probs(parts_of(model), *batch) for model in (lm, lm_ref))  # [2] each
    return dpo_loss(policy[:1], policy[1:], reference[:1], reference[1:], beta)


# test_grpo.py


def run_compute_group_normalized_rewards(
    reward_fn, rollout_responses, repeated_ground_truths, group_size, advantage_eps, normalize_by_std
):
    """`advantage_eps` is a fixed number in ours."""
    pairs = zip(rollout_responses, repeated_ground_truths, strict=True)
    rewards = torch.tensor([reward_fn(response, truth)["reward"] for response, truth in pairs])
    advantages = advantages_of_groups(rewards.view(-1, group_size), scale=normalize_by_std)
    return advantages.flatten(), rewards, {}


def run_compute_naive_policy_gradient_loss(raw_rewards_or_advantages, policy_log_probs):
    pytest.skip(NO_REINFORCE)


def run_compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange):
    try:
        return -clipped_objective(policy_log_probs, old_log_probs, advantages, cliprange), {}
    except ValueError as error:
        pytest.skip(f"ours on purpose: {error}")


def run_compute_policy_gradient_loss(policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange):
    if loss_type != "grpo_clip":
        pytest.skip(NO_REINFORCE)
    return run_compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)


def run_grpo_microbatch_train_step(
    policy_log_probs, response_mask, gradient_accumulation_steps, loss_type, raw_rewards, advantages, old_log_probs,
    cliprange,
):  # fmt: skip
    assert loss_type == "grpo_clip"
    losses = policy_loss(policy_log_probs, old_log_probs, old_log_probs, advantages, response_mask, eps=cliprange)
    loss = losses.mean() / gradient_accumulation_steps
    loss.backward()
    return loss.detach(), {}


def over_rows(tensor, mask, dim, length):
    """`policy_loss` along one dimension, or all, of any tensor: at a ratio of 1, where the objective is the advantage,
    it is the mean (or the sum by `length`) of minus that over what the mask lets through."""
    if dim is None:
        tensor, mask, dim = tensor.flatten(), mask.flatten(), 0
    values, kept = tensor.movedim(dim, -1), mask.movedim(dim, -1)  # [..., T]
    rows, kept = values.flatten(0, -2) if values.dim() > 1 else values[None], kept.reshape(-1, values.shape[-1])
    same = torch.zeros_like(rows)
    return policy_loss(same, same, same, -rows, kept, length=length).view(values.shape[:-1])


def run_masked_mean(tensor, mask, dim=None):
    if dim is not None and not mask.any(dim=dim).all():
        pytest.skip("ours on purpose: the mean over no token is 0, there it is NaN, which would ruin a whole batch")
    return over_rows(tensor, mask, dim, length=None)


# test_sft.py


def run_tokenize_prompt_and_output(prompt_strs, output_strs, tokenizer):
    """Padding counts nowhere: ours is 0 and IGNORE, the assignment's is the tokenizer's id."""
    encode, batch = parts_of_tokenizer(tokenizer).encode_ordinary, []
    for prompt, output in zip(map(encode, prompt_strs), map(encode, output_strs), strict=True):
        ids = torch.tensor(prompt + output)
        batch.append((ids, torch.arange(len(ids)) >= len(prompt)))
    _, answers = collate_instructions(batch)  # [B, T]
    inputs, labels = collate_instructions(batch, mask_prompt=False)
    labels = labels.masked_fill(labels == IGNORE, tokenizer.pad_token_id)
    inputs = torch.cat([inputs[:, :1], labels[:, :-1]], dim=1)  # with the last token, which ours leaves out
    return {"input_ids": inputs, "labels": labels, "response_mask": answers != IGNORE}


def run_compute_entropy(logits):
    pytest.skip(NO_ENTROPY)


def run_get_response_log_probs(model, input_ids, labels, return_token_entropy):
    tokens = torch.cat([input_ids, labels[:, -1:]], dim=1)  # [B, T + 1]
    log_probs = token_log_probs(parts_of(model), tokens, torch.ones_like(labels, dtype=torch.bool))
    if return_token_entropy:
        pytest.skip(NO_ENTROPY)
    return {"log_probs": log_probs}


def run_masked_normalize(tensor, mask, dim=None, normalize_constant=1.0):
    return over_rows(tensor, mask, dim, length=normalize_constant)


def run_sft_microbatch_train_step(policy_log_probs, response_mask, gradient_accumulation_steps, normalize_constant=1.0):
    pytest.skip(NO_SFT_STEP)
