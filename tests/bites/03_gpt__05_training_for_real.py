"""What is broken in lesson 3.5, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("ignored targets count", find="(targets != IGNORE).sum().clamp(min=1)", replace="targets.numel()"),
    Mutation("no chunk is forgotten", find="checkpoint(part, *chunk, use_reentrant=False)", replace="part(*chunk)"),
    Mutation("a chunk is left out", find="for chunk in chunks)", replace="for chunk in list(chunks)[1:])"),
    Mutation("unequal micro-batches are averaged", find="* n / sum(counts) for (a, b), n", replace="/ 4 for (a, b), n"),
    Mutation("every batch of a step weighs the same", find="* (count / max(1, sum(counts)))",
             replace="* (1 / len(batches))"),
    Mutation("the step does not clip", find="clip_grad_norm_(parameters, clip or math.inf)",
             replace="clip_grad_norm_(parameters, math.inf)"),
    Mutation("a loss of NaN reaches the weights",
             find="if not math.isfinite(loss) or not (math.isfinite(norm) or scaler.is_enabled()):",
             replace="if False:"),
    Mutation("the resumed run starts its order anew", find="if step >= steps_done:",
             replace="if step >= steps_done - steps_done:"),
    Mutation("the checksum leaves the tensors out",
             find="        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())", replace="        pass"),
    Mutation("the optimizer is not restored",
             find='optimizer.load_state_dict({"state": values, "param_groups": groups})', replace="pass"),
    Mutation("the random state is not restored", find='torch.set_rng_state(tensors["random.cpu"])', replace="pass"),
    Mutation("the button ends the run before its state is saved",
             find="history.steps_done == total_steps or history.interrupted:",
             replace="history.steps_done == total_steps:"),
]

SMALLER = {'final = {"epochs": 20,': 'final = {"epochs": 2,', "killed_after(302,": "killed_after(22,"}
LEFT_OUT = ["def gelu(x)", "runs = {(kind, clip)", "def cost(kind, clip)", "ways = {"]

WRONG_ANSWERS = {
    "training_megabytes": """
        def training_megabytes(n_parameters, n_tokens, vocab_size, n_rows=None):
            rows = n_rows or n_tokens  # a chunk may be longer than the batch
            return 4 * (4 * n_parameters + rows * vocab_size) / 1e6
    """,
    "next_scale": """
        def next_scale(scale, good_steps, is_finite, interval):
            if not is_finite:
                return scale / 2, good_steps  # the counting goes on
            return (scale * 2, 0) if good_steps + 1 == interval else (scale, good_steps + 1)
    """,
    "goes_on": """
        def goes_on(weights_only, seed):
            model = new_model(seed=0)
            optimizer, losses = make_optimizer(model, 5e-3), []
            load_state(scratch / "glimpse.safetensors", model)  # the optimizer is new in both cases
            torch.manual_seed(seed)
            for x, y in batches_for(30, seed):
                loss = next_token_loss(model, x, y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            return losses
    """,
}
