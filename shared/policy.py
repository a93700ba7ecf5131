"""Reinforcement learning from a reward: samples, advantages, the clipped objective, a step, a loop (GRPO, PPO's parts).

Shapes: P prompts, G answers to each (a group), N = P * G rows, T tokens of the longest row, M drawn tokens, V
vocabulary. `mask` [N, T-1] is True where tokens[:, 1:] were drawn by the model, not in prompts and padding.
"""

import copy
import signal
from dataclasses import dataclass

import torch
from tqdm import tqdm

from shared.generation import as_histories, generate
from shared.loss import mixed_precision
from shared.runtime import autocast_dtype, evaluating, stop_on
from shared.training import check_bounds, make_optimizer, take_step

TINY = 1e-4  # keeps the division finite where the rewards of a group hardly differ


@dataclass(frozen=True)
class Samples:
    """Answers that a model drew, group after group: tokens [N, T], mask and log_probs [N, T-1], N texts of answers."""

    tokens: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    answers: list


def in_pieces(work, n_rows, size, start_over=None):
    """[work(slice), ...] for slices of at most `size` of `n_rows` rows; halved where a GPU's memory runs out.

    What is done then stays done, or all begins again after a call of `start_over`.
    """
    check_bounds(1, int, rows=size)  # pieces of nothing would never end
    results, start = [], 0
    while start < n_rows:
        rows = slice(start, min(n_rows, start + size))
        try:
            results.append(work(rows))
            start = rows.stop
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = max(1, size // 2)
            if start_over is not None:
                start_over()
                results, start = [], 0
    return results


def sample_group(model, tokenizer, prompts, n, max_new_tokens, *, stop_id=None, rows=64, generator=None):
    """`Samples`: `n` answers to each of `prompts` (lists of ids), drawn at temperature 1 from the model as it is.

    An answer ends with `stop_id` (default: <|endoftext|>), which belongs to it, or after `max_new_tokens`. `rows` are
    drawn together. Raises ValueError for a group of one, and where prompt and answer do not fit into the context.
    """
    check_bounds(2, int, n=n)  # a group of one has nothing to compare
    check_bounds(1, int, max_new_tokens=max_new_tokens, rows=rows)
    stop_id = tokenizer.eot_token if stop_id is None else stop_id
    starts = [ids for ids in fitting_prompts(prompts, model, max_new_tokens) for _ in range(n)]

    def draw(part):
        longest = max(map(len, starts[part]))  # where the new tokens begin
        drawn = generate(model, starts[part], max_new_tokens, eos_id=stop_id, n_vocab=tokenizer.n_vocab,
                         temperature=1.0, generator=generator)  # fmt: skip
        return drawn[:, longest:].tolist()

    drawn = [ids for piece in in_pieces(draw, len(starts), rows) for ids in piece]
    drawn = [ids[: ids.index(stop_id) + 1] if stop_id in ids else ids for ids in drawn]
    T, device = max(len(a) + len(b) for a, b in zip(starts, drawn, strict=True)), model.token_embedding.weight.device
    tokens = torch.tensor([a + b + [0] * (T - len(a + b)) for a, b in zip(starts, drawn, strict=True)], device=device)
    mask = torch.zeros(len(drawn), T - 1, dtype=torch.bool, device=device)
    for row, before, new in zip(mask, starts, drawn, strict=True):
        row[len(before) - 1 : len(before) - 1 + len(new)] = True
    return Samples(tokens, mask, log_probs_of(model, tokens, mask, rows), [tokenizer.decode(ids) for ids in drawn])


def fitting_prompts(prompts, model, max_new_tokens):
    """`prompts` as lists of ids. Raises ValueError where one is empty, or too long for `max_new_tokens` more."""
    prompts, room = as_histories(prompts, model.config.vocab_size), model.config.context_length - max_new_tokens
    if (longest := max(map(len, prompts))) > room:
        raise ValueError(f"a prompt has {longest} tokens; with {max_new_tokens} new ones at most {room} fit")
    return prompts


def token_log_probs(model, tokens, mask):
    """ln P of each drawn token, 0 elsewhere: tokens [N, T], mask [N, T-1] -> [N, T-1].

    Only the M drawn tokens reach the head. Minus their mean estimates the entropy of what they were drawn from.
    """
    log_probs = model.head(model.hidden(tokens[:, :-1])[mask]).float().log_softmax(dim=-1)  # [M, V]
    drawn = log_probs.gather(1, tokens[:, 1:][mask][:, None])[:, 0]  # [M]
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, drawn)


def log_probs_of(model, tokens, mask, rows=64):
    """`token_log_probs` without gradients and dropout, `rows` at a time: [N, T-1]."""
    with evaluating(model), mixed_precision(tokens.device):
        return torch.cat(in_pieces(lambda part: token_log_probs(model, tokens[part], mask[part]), len(tokens), rows))


def advantages_of_groups(rewards, scale=True):
    """How much better each answer was than its group: rewards [P, G] -> [P, G].

    The group's mean is the baseline. `scale=True` also divides by the group's standard deviation (GRPO, Shao et al.
    2024, section 4.1); without it easy and hard prompts weigh no more than others (Dr. GRPO, Liu et al. 2025). A group
    of equal rewards has advantages 0. Raises ValueError for a group of one and for a reward that is NaN or infinite.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2 or not rewards.isfinite().all():
        raise ValueError(f"rewards must be finite, in groups of at least 2, [P, G]; got {rewards.tolist()!s:.60}")
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred = centred.masked_fill(equal_groups(rewards)[:, None], 0.0)  # rounding would be scaled up
    return centred / (rewards.std(dim=1, keepdim=True) + TINY) if scale else centred


def equal_groups(rewards):
    """Which groups say nothing, since all their answers have one reward: [P, G] -> [P]."""
    return rewards.amax(dim=1) == rewards.amin(dim=1)


def gae(rewards, values, gamma=1.0, lam=0.95):
    """Generalized advantage estimation (Schulman et al. 2016, equation 16): rewards, values [..., T] -> [..., T].

    values[t] is what was expected before step t; after the last step nothing is left to come. `lam=1` trusts the
    rewards, `lam=0` the values. Rows may end early, with zeros in both. Raises ValueError unless both are in [0, 1].
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma is {gamma} and lam is {lam}; both must be from 0 to 1")
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    surprise = rewards + float(gamma) * following - values  # [..., T]
    advantages, later = torch.zeros_like(surprise), 0.0
    for t in reversed(range(surprise.shape[-1])):
        later = surprise[..., t] + gamma * lam * later
        advantages[..., t] = later
    return advantages


def clipped_objective(new, old, advantages, eps=0.2):
    """PPO's objective, to be made large (Schulman et al. 2017, equation 7); log-probabilities new, old, all [...].

    A token whose probability has already moved by the factor 1 + eps (or 1 - eps) the way it should gives no gradient.
    """
    if not 0 < eps < 1:
        raise ValueError(f"eps is {eps}; it must be between 0 and 1")
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages)


def kl_estimate(new, reference):
    """KL(new || reference) by one draw from `new`, never negative: ln P of the drawn tokens [...] -> [...].

    r - 1 - ln r with r = P_reference / P_new (Schulman 2020, "Approximating KL divergence": k3); its mean is the KL.
    """
    log_r = reference - new
    return log_r.exp() - 1 - log_r


def policy_loss(new, old, reference, advantages, mask, *, eps=0.2, beta=0.0, length=None):
    """The loss of each answer, to be made small: log-probabilities [N, T-1], advantages [N] or [N, T-1] -> [N].

    -clipped objective + beta * KL estimate, as a mean over an answer's own tokens (GRPO, Shao et al. 2024, equation
    3), or a sum divided by a fixed `length` (Dr. GRPO). Raises ValueError for a negative beta or length.
    """
    check_bounds(0, float, beta=beta)
    check_bounds(1, float, length=1 if length is None else length)
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    new, old, reference = (values.masked_fill(~mask, 0.0) for values in (new, old, reference))  # padding says nothing
    loss = beta * kl_estimate(new, reference) - clipped_objective(new, old, advantages, eps)  # [N, T-1]
    return (loss * mask).sum(dim=1) / (mask.sum(dim=1).clamp(min=1) if length is None else length)


def policy_step(model, samples, reference, advantages, optimizer, scaler, *, rows=64, clip=1.0, **settings):
    """One update on `samples`: (loss, norm of the gradient before clipping to `clip`; None: not clipped).

    reference [N, T-1], advantages [N] or [N, T-1]; `settings`: those of `policy_loss`. How many `rows` are computed
    together changes the memory, not the gradient. FloatingPointError where that is not finite.
    """
    optimizer.zero_grad()  # of a step that was broken off

    def work(part):
        old, mask = samples.log_probs[part], samples.mask[part]
        with mixed_precision(mask.device):
            new = token_log_probs(model, samples.tokens[part], mask)
        loss = policy_loss(new, old, reference[part], advantages[part], mask, **settings).sum() / len(samples.tokens)
        scaler.scale(loss).backward()
        return loss.item()

    loss = sum(in_pieces(work, len(samples.tokens), rows, start_over=optimizer.zero_grad))
    return loss, take_step(loss, optimizer, scaler, clip)


def ask_for_rewards(reward, prompts, answers, n):
    """`reward(prompt texts, answer texts)` as [P, n]. Raises ValueError unless it gives a finite number for each."""
    given = torch.as_tensor(reward(prompts, answers), dtype=torch.float32).detach().cpu()
    if given.shape != (len(answers),):
        raise ValueError(f"the reward must give one number for each of {len(answers)} answers; got {[*given.shape]}")
    if not given.isfinite().all():
        wrong = int((~given.isfinite()).nonzero()[0])
        raise ValueError(f"the reward of the answer {answers[wrong]!r:.60} is {given[wrong]}; it must be finite")
    return given.view(-1, n)


def train_policy(
    model, tokenizer, prompts, reward, *, steps, n_prompts=8, n=8, max_new_tokens=24, stop_id=None, lr=1e-4, beta=0.05,
    eps=0.2, epochs=1, advantages=advantages_of_groups, length=None, reference=None, rows=64, seed=0, progress=True,
):  # fmt: skip
    """Train `model` in place on its answers (GRPO, Shao et al. 2024); returns a dict of lists: what each step saw.

    A step draws `n` answers to `n_prompts` of `prompts` (lists of ids), asks `reward(prompt texts, answer texts)` for a
    number for each, and updates `epochs` times on them. KL is to `reference` (None: the model as it came). The dict has
    reward, kl and entropy (nats per token), length (tokens) and equal, the share of groups whose rewards were equal (a
    line at the end counts them). The model is left in eval mode. Ctrl-C ends the run after a step. ValueError for a
    bad setting or reward.
    """
    check_bounds(0, float, lr=lr, beta=beta)
    check_bounds(1, int, steps=steps, epochs=epochs, n_prompts=n_prompts, rows=rows, max_new_tokens=max_new_tokens)
    prompts = fitting_prompts(prompts, model, max_new_tokens)  # here, not in the step that would meet the long one
    reference = copy.deepcopy(model) if reference is None else reference
    if {id(p) for p in model.parameters() if p.requires_grad} & {id(p) for p in reference.parameters()}:
        raise ValueError("the reference learns with the model, so the KL would stay 0: give a copy.deepcopy, or None")
    device, n_prompts = model.token_embedding.weight.device, min(n_prompts, len(prompts))
    history = {name: [] for name in ("reward", "kl", "entropy", "length", "equal")}
    optimizer = make_optimizer(model, lr, weight_decay=0.0)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype(device) == torch.float16)
    dice, order = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)
    model.eval()  # dropout would change the probabilities between the draw and the step
    with stop_on(signal.SIGINT) as stop, tqdm(range(steps), unit="step", disable=not progress) as bar:
        for _ in bar:
            asked = [prompts[i] for i in torch.randperm(len(prompts), generator=order)[:n_prompts].tolist()]
            drawn = sample_group(model, tokenizer, asked, n, max_new_tokens, stop_id=stop_id, rows=rows, generator=dice)
            texts = [tokenizer.decode(ids) for ids in asked for _ in range(n)]
            rewards = ask_for_rewards(reward, texts, drawn.answers, n)
            before = log_probs_of(reference, drawn.tokens, drawn.mask, rows)
            equal, gain = equal_groups(rewards), advantages(rewards).flatten().to(device)
            for _ in range(0 if equal.all() and beta == 0 else epochs):  # without a gradient there is still momentum
                policy_step(model, drawn, before, gain, optimizer, scaler, rows=rows, eps=eps, beta=beta, length=length)
            seen = {"reward": rewards, "kl": kl_estimate(drawn.log_probs, before)[drawn.mask], "equal": equal.float(),
                    "entropy": -drawn.log_probs[drawn.mask], "length": drawn.mask.sum(dim=1).float()}  # fmt: skip
            for name, value in seen.items():
                history[name].append(value.mean().item())
            bar.set_postfix_str(f"reward {history['reward'][-1]:.2f}, KL {history['kl'][-1]:.2f}", refresh=False)
            if stop:
                break
    if dropped := round(sum(history["equal"]) * n_prompts):
        print(f"{dropped} of {len(history['equal']) * n_prompts} groups had equal rewards, which say nothing")
    return history
