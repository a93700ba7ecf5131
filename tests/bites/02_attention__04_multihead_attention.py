"""What must not survive in the lesson on multi-head attention."""

from tests.bites import Mutation

FUSED, CLASS = "class FusedHeads", "class MultiHeadAttention"
MUTATIONS = [
    Mutation("heads joined in reverse", find="torch.cat([head(x) for head in self.heads], dim=-1)",
             replace="torch.cat([head(x) for head in reversed(self.heads)], dim=-1)"),
    Mutation("cut without a transpose", find="heads = cut.transpose(0, 1)", replace="heads = cut.reshape(3, 2, 2)"),
    Mutation("weights stacked head by head", find='for name in ("query", "key", "value") for head in heads]',
             replace='for head in heads for name in ("query", "key", "value")]'),
    Mutation("drop the mask", find='scores.masked_fill(future, float("-inf")).softmax', replace="scores.softmax",
             cell_contains=FUSED),
    Mutation("drop the scale", find=" / k.shape[-1] ** 0.5", replace="", cell_contains=FUSED),
    Mutation("heads before tokens in the view", find="view(B, T, 3, self.n_heads, D // self.n_heads)",
             replace="view(B, T, self.n_heads, 3, D // self.n_heads).transpose(2, 3)", cell_contains=CLASS),
    Mutation("merge without a transpose", find="out.transpose(1, 2).reshape(B, T, D)", replace="out.reshape(B, T, D)",
             cell_contains=CLASS),
    Mutation("the fast function without the causal mask", find="is_causal=True", replace="is_causal=False",
             cell_contains=CLASS),
    Mutation("drop the last projection", find="self.out_proj(out.transpose(1, 2).reshape(B, T, D))",
             replace="out.transpose(1, 2).reshape(B, T, D)", cell_contains=CLASS),
    Mutation("weights to look at without a scale", find="scores = q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5",
             replace="scores = q @ k.transpose(-2, -1)", cell_contains="def attention_weights"),
    Mutation("two heads get as little as one", find="model = MultiHeadAttention(4 * N, n_heads)",
             replace="model = MultiHeadAttention(4 * N, 1)"),
    Mutation("heads of the trained model are not silenced", find="out.view(len(out), H, -1)[:, number % H] = 0.0",
             replace="pass"),
]
LEFT_OUT = [
    "device = get_device()", "models = [train_small(seed)",
    "maps = attention_weights(models[0]", "def without_head", "carried = Finished(D, 4)",
    "wide = [loss_on(", "ax.imshow(table",
]

WRONG_ANSWERS = {
    "right_by_heads": """
        def right_by_heads(numbers):
            return {n: learn(n, 0).mean() for n in numbers}  # the mean of all steps, also of the first ones
    """,
    "one_head_only": """
        def one_head_only(layer, x, h):
            D = x.shape[-1]
            # as if the rows were the query, key and value of head 0, then those of head 1
            weights = layer.qkv.weight.view(layer.n_heads, 3, D // layer.n_heads, D)[h]
            q, k, v = (x @ weight.T for weight in weights)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    """,
    "grouped_attention": """
        def grouped_attention(q, k, v):
            times = q.shape[1] // k.shape[1]
            k, v = k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)  # heads in the order 0 1 0 1
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    """,
}
