"""What is broken in lesson 3.8, and a typical wrong answer to each of its exercises."""

from tests.bites import Mutation

ATTENTION = "class GroupedQueryAttention"
MUTATIONS = [
    Mutation("divided by the mean square, without the root", find="+ self.eps).rsqrt()",
             replace="+ self.eps).reciprocal()"),
    Mutation("no eps in the norm", find="+ self.eps).rsqrt()", replace=").rsqrt()"),
    Mutation("both members of a pair turn apart", find="torch.cat([-second, first], dim=-1) * sin",
             replace="torch.cat([second, first], dim=-1) * sin"),
    Mutation("vectors turn clockwise", find="torch.cat([-second, first], dim=-1) * sin",
             replace="torch.cat([second, -first], dim=-1) * sin"),
    Mutation("the speeds are not divided by the width of a head", find="device=positions.device) / head_dim)",
             replace="device=positions.device) / 8)"),
    Mutation("the keys are not turned", find="q, k, mask = rotate(q, *rotation), rotate(k, *rotation), None",
             replace="q, mask = rotate(q, *rotation), None"),
    Mutation("the gate goes without SiLU", find="F.silu(self.gate(x)) * self", replace="self.gate(x) * self"),
    Mutation("the future is open", find="is_causal=mask is None and T > 1", replace="is_causal=False",
             cell_contains=ATTENTION),
    Mutation("the values are the keys", find="k, v, mask = cache(k, v)", replace="k, v, mask = cache(k, k)"),
    Mutation("the stream is not added to", find="return x + self.feed_forward(self.norm2(x))",
             replace="return self.feed_forward(self.norm2(x))"),
    Mutation("the first norm serves twice", find="self.feed_forward(self.norm2(x))",
             replace="self.feed_forward(self.norm1(x))"),
    Mutation("the weights begin where the table ends", find="start = -(-source.place // step) * step",
             replace="start = source.place"),
    Mutation("the shape is read forwards", find='for _ in range(source.number("I"))][::-1]',
             replace='for _ in range(source.number("I"))]'),
    Mutation("low and high halves are exchanged", find="np.concatenate([q & 15, q >> 4], axis=1)",
             replace="np.concatenate([q >> 4, q & 15], axis=1)"),
    Mutation("the smallest value is forgotten", find="np.concatenate([q & 15, q >> 4], axis=1) + m",
             replace="np.concatenate([q & 15, q >> 4], axis=1)"),
    Mutation("the bytes of Q8_0 have no sign", find="blocks[:, 2:].view(np.int8)", replace="blocks[:, 2:]"),
    Mutation("the rows stay as in the file", find="weight.view(n_heads, -1, 2, weight.shape[-1]).transpose(1, 2)",
             replace="weight.view(n_heads, -1, 2, weight.shape[-1])"),
    Mutation("the head is not tied", find="    model.head.weight = model.token_embedding.weight  # tied",
             replace="    pass  # tied"),
]

SMALLER = {  # the stand-in, which has all the parts of the real file
    'file = data.fetch("smollm2")': 'file = data.places.SAMPLES / "smollm2-tiny.gguf"',
    'finished, encoding = load_base("smollm2")':
        "from shared.checkpoints import load_gguf\nfinished, encoding = load_gguf(file)",
}
LEFT_OUT = [
    "def in_transformers", "for question in questions", "def memory_bandwidth", "models, speeds = {",
    "rates, limits = ",
]

WRONG_ANSWERS = {
    "to_q8_0": """
        def to_q8_0(block):
            d = (block.max() - block.min()).item() / 255  # as if the numbers lay on both sides of 0 alike
            return struct.pack("<e", d) + (block / d).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()
    """,
    "chat": """
        def chat(model, turns, question):
            turns.append(("user", question))  # changes the list that was given
            turns.append(("assistant", ask(model, question, 40)))
            return turns
    """,
    "loss_by_position": """
        def loss_by_position(base):
            with torch.no_grad():  # the model has its own base, and this one is not used
                return F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    """,
}
