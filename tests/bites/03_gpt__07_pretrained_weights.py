"""What is broken in lesson 3.7, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("the two norms of a block are mixed up", find='"norm1": "ln_1"', replace='"norm1": "ln_2"'),
    Mutation("square matrices are not turned", find='return ".c_" in published and published.endswith(".weight")',
             replace='return ".c_" in published and published.endswith(".weight") and "attn.c_proj" not in published'),
    Mutation("the layers are counted backwards", find='return f"h.{i}.{BLOCK_NAMES[part]}.{kind}"',
             replace='return f"h.{int(i) + 1}.{BLOCK_NAMES[part]}.{kind}"'),
    Mutation("the tensors are copied into the ghost", find="strict=False, assign=True)", replace="strict=False)"),
    Mutation("the loader turns nothing back", find="= tensor.T if turned else tensor",
             replace="= tensor.T.contiguous().view(tensor.shape) if turned else tensor"),
    Mutation("the head is not tied again", find="        model.head.weight = model.token_embedding.weight",
             replace="        pass"),
    Mutation("matrices leave as they are", find="(tensor.T if is_transposed(published) else tensor).contiguous()",
             replace="tensor.contiguous()"),
    Mutation("windows overlap without saying so", find="[0, done - 1 - start :]", replace="[0, done - start :]"),
    Mutation("nats are called bits", find="losses.sum().item() / math.log(2) / n_bytes",
             replace="losses.sum().item() / n_bytes"),
    Mutation("the batch reads one token late", find="hidden[k, len(row) - 1 - n : len(row) - 1]",
             replace="hidden[k, len(row) - n : len(row)]"),
    Mutation("Wilson's centre is forgotten", find="k / n + z * z / (2 * n), z *", replace="k / n, z *"),
]

SMALLER = {"some(data.load(\"hellaswag\"), run.scenes)": "some(data.load(\"hellaswag\"), 24)"}
LEFT_OUT = ["def from_transformers", "other = from_transformers(folder)", "sentence = ", "by_context = {}",
            "plt.plot([str(k)", "wiki_ids = ", "pieces = wiki[", "def guesser_reaches", "shares = [(", "what for what"]

WRONG_ANSWERS = {
    "merge_qkv": """
        def merge_qkv(q, k, v):
            return torch.cat([q, k, v], dim=1)  # side by side, but each one still [out, in]
    """,
    "paired_interval": """
        def paired_interval(a, b, n=2000, seed=0):
            one = bootstrap(a.float(), lambda draw: draw.mean().item(), n, seed)
            two = bootstrap(b.float(), lambda draw: draw.mean().item(), n, seed + 1)
            return one[0] - two[1], one[1] - two[0]  # as if the items were different ones
    """,
    "round_to": """
        def round_to(weight, bits):
            step = weight.abs().max() / (2 ** (bits - 1) - 1)  # one step for the whole matrix
            return (weight / step).round() * step
    """,
}
