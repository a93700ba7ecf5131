"""How lesson 3.1 is broken to see that it notices (see tests/bites.py)."""

from tests.bites import Mutation

MUTATIONS = [
    Mutation("variance by D - 1", find="x.var(dim=-1, keepdim=True, unbiased=False)",
             replace="x.var(dim=-1, keepdim=True)", cell_contains="def layer_norm"),
    Mutation("attention replaces the stream", find="return x + self.attention(self.norm1(x))  # [B, T, D]",
             replace="return self.attention(self.norm1(x))"),
    Mutation("another constant in GELU", find="0.044715", replace="0.44715"),
    Mutation("no residual in the deep stack", find="x = x + layer(x) if residual else",
             replace="x = layer(x) if residual else"),
    Mutation("no residual around attention", find="x = x + self.dropout(self.attention(self.norm1(x)))",
             replace="x = self.dropout(self.attention(self.norm1(x)))"),
    Mutation("attention reads the raw stream", find="self.dropout(self.attention(self.norm1(x)))",
             replace="self.dropout(self.attention(x))"),
    Mutation("no division by sqrt(2 n_layers)", find="std=0.02 / (2 * model.config.n_layers) ** 0.5",
             replace="std=0.02"),
    Mutation("no position embedding", find=" + self.position_embedding(positions)", replace="",
             cell_contains="class GPTModel"),
    Mutation("a part of the stream is forgotten", find='        x = x + added[f"attention {i}"]\n', replace=""),
    Mutation("head not tied", find="self.head.weight = self.token_embedding.weight", replace="pass"),
    Mutation("PyTorch's start instead of GPT-2's", find="        init_gpt2(self)\n", replace=""),
    Mutation("targets not shifted", find="ids[None, 1:]", replace="ids[None, :-1]"),
    Mutation("the logits of the first position", find="model.hidden(ids)[:, -1]", replace="model.hidden(ids)[:, 0]"),
    Mutation("attention counted half", find="12 * config.n_layers", replace="6 * config.n_layers"),
]

SMALLER = {'replace(GPT2_CONFIGS["gpt2"], vocab_size=tokenizer.n_vocab)':
               'replace(GPT2_CONFIGS["gpt2"], vocab_size=tokenizer.n_vocab, emb_dim=384, n_layers=4)'}

WRONG_ANSWERS = {
    "parameter_formula": """
        def parameter_formula(config):
            D = config.emb_dim
            block = 4 * D + (3 * D**2 + 3 * D) + (D**2 + D) + (8 * D**2 + 5 * D)  # qkv_bias forgotten
            matrices = 1 if config.tie_weights else 2
            return (matrices * config.vocab_size + config.context_length) * D + config.n_layers * block + 2 * D
    """,
    "bare_forward": """
        def bare_forward(block, x):
            x = x + block.attention(block.norm1(x))  # still added
            return block.feed_forward(block.norm2(x))
    """,
}
