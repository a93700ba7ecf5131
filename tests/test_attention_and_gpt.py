"""Attention and model against PyTorch's own functions and transformers' GPT-2 with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from shared.attention import CausalAttention, MultiHeadAttention, SelfAttention
from shared.gpt import GPT2_CONFIGS, FeedForward, GPTConfig, GPTModel, count_parameters


@pytest.mark.parametrize("bias", [False, True])
def test_self_attention_equals_sdpa(bias):
    x, layer = torch.randn(3, 7, 10), SelfAttention(10, 6, qkv_bias=bias)
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    assert_close(layer(x), F.scaled_dot_product_attention(q, k, v))
    assert_close(layer(x[0]), layer(x)[0])


def test_causal_attention_equals_sdpa_and_refuses_long_input():
    x, layer = torch.randn(3, 7, 10), CausalAttention(10, 6, context_length=9)
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    assert_close(layer(x), F.scaled_dot_product_attention(q, k, v, is_causal=True))
    with pytest.raises(ValueError, match="10 tokens.*9"):
        layer(torch.randn(1, 10, 10))


def test_causal_attention_dropout_keeps_the_mean_and_is_off_in_eval():
    x, layer = torch.randn(1, 4, 8), CausalAttention(8, 8, 4, drop_rate=0.5)
    layer.eval()
    exact = layer(x)
    assert_close(layer(x), exact)
    layer.train()
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(dim=0)
    assert (mean - exact).abs().max() < 0.1 * exact.abs().max() + 0.05
    assert not torch.equal(layer(x), exact)


@pytest.mark.parametrize(("width", "heads", "bias"), [(12, 1, False), (12, 3, True), (64, 8, True)])
def test_multi_head_attention_equals_pytorchs(width, heads, bias):
    ours = MultiHeadAttention(width, heads, qkv_bias=bias)
    theirs = torch.nn.MultiheadAttention(width, heads, bias=True, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias if bias else torch.zeros(3 * width))
        theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = torch.randn(2, 9, width)
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    assert_close(ours(x), theirs(x, x, x, attn_mask=future, need_weights=False)[0])


@pytest.mark.parametrize("make", [lambda: CausalAttention(8, 8, 12), lambda: MultiHeadAttention(8, 2)])
def test_the_future_cannot_leak(make):
    layer, x = make(), torch.randn(1, 12, 8)
    for t in range(12):
        changed = x.clone()
        changed[0, t] += 1
        difference = (layer(changed) - layer(x)).abs().sum(dim=-1)[0]
        assert difference[:t].max().item() == 0 if t else True
        assert difference[t] > 0


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="10.*3"):
        MultiHeadAttention(10, 3)
    with pytest.raises(ValueError, match="10.*3"):
        GPTConfig(100, 8, 10, 3, 1)


def test_feed_forward_equals_the_formula():
    layer, x = FeedForward(6), torch.randn(2, 3, 6)
    hidden = x @ layer.expand.weight.T + layer.expand.bias
    gelu = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    assert_close(layer(x), gelu @ layer.contract.weight.T + layer.contract.bias)


SIZES = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_gpt2s(name):
    with torch.device("meta"):
        assert count_parameters(GPTModel(GPT2_CONFIGS[name])) == SIZES[name]


def copy_to_transformers(model):
    """A transformers GPT-2 with the weights of `model`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    theirs = GPT2LMHeadModel(GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.context_length, n_embd=c.emb_dim, n_layer=c.n_layers, n_head=c.n_heads,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=None,
        tie_word_embeddings=c.tie_weights,
    ))  # fmt: skip
    ours, t = model.state_dict(), {}
    t["wte.weight"], t["wpe.weight"] = ours["token_embedding.weight"], ours["position_embedding.weight"]
    t["ln_f.weight"], t["ln_f.bias"] = ours["final_norm.weight"], ours["final_norm.bias"]
    names = {"norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out_proj": "attn.c_proj",
             "feed_forward.expand": "mlp.c_fc", "feed_forward.contract": "mlp.c_proj"}  # fmt: skip
    for i in range(c.n_layers):
        for mine, other in names.items():
            weight = ours[f"blocks.{i}.{mine}.weight"]
            t[f"h.{i}.{other}.weight"] = weight if "norm" in mine else weight.T
            bias = ours.get(f"blocks.{i}.{mine}.bias")
            t[f"h.{i}.{other}.bias"] = torch.zeros(3 * c.emb_dim) if bias is None else bias
    theirs.transformer.load_state_dict(t)
    theirs.lm_head.weight.data.copy_(ours["head.weight"])
    return theirs.eval()


CONFIGS = [
    GPTConfig(97, 16, 24, 1, 1),
    GPTConfig(211, 32, 48, 4, 3, tie_weights=False),
    GPTConfig(64, 24, 32, 8, 2, qkv_bias=False),
]


def lively(config, seed=0):
    """A model with weights so large that its outputs differ clearly from token to token."""
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_loss_and_greedy_output_equal_transformers(config):
    from shared.generation import generate
    from shared.loss import next_token_loss

    model = lively(config)
    theirs = copy_to_transformers(model)
    tokens = torch.randint(0, config.vocab_size, (3, config.context_length))
    assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    loss = next_token_loss(model, tokens[:, :-1], tokens[:, 1:])
    assert_close(loss, theirs(tokens, labels=tokens).loss, rtol=1e-5, atol=1e-5)
    prompt = tokens[:, :5]
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False,
                               pad_token_id=0)  # fmt: skip
    assert torch.equal(generate(model, prompt, 10), expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_initial_loss_is_that_of_guessing(config):
    torch.manual_seed(0)
    model = GPTModel(config)
    tokens = torch.randint(0, config.vocab_size, (4, config.context_length))
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss - torch.log(torch.tensor(float(config.vocab_size)))) < 0.1


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(1000, 64, 128, 4, 8))
    block = model.blocks[3]
    assert abs(block.attention.qkv.weight.std() - 0.02) < 0.001
    assert abs(block.attention.out_proj.weight.std() - 0.02 / 4) < 0.0005
    assert abs(block.feed_forward.contract.weight.std() - 0.02 / 4) < 0.0005
    assert block.attention.qkv.bias.abs().max() == 0 and block.norm1.weight.min() == 1
    assert model.head.weight is model.token_embedding.weight


def test_model_refuses_bad_input():
    model = GPTModel(CONFIGS[0])
    with pytest.raises(ValueError, match="17 tokens.*16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="97"):
        model(torch.tensor([[96, 97]]))
    with pytest.raises(ValueError, match="-1"):
        model(torch.tensor([[-1]]))
    with pytest.raises(ValueError, match="no tokens"):
        model(torch.zeros(1, 0, dtype=torch.long))
    for bad in ({"vocab_size": 0}, {"drop_rate": 1.0}, {"n_layers": -1}, {"context_length": 4.0}, {"n_heads": True},
                {"emb_dim": float("nan")}, {"drop_rate": float("nan")}, {"vocab_size": "9"}):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(bad))):
            GPTConfig(**{"vocab_size": 9, "context_length": 4, "emb_dim": 8, "n_heads": 2, "n_layers": 1} | bad)


def test_the_loss_of_a_model_compiles_as_one_graph():
    def loss(model, tokens):
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    model, tokens = lively(CONFIGS[1]), torch.randint(0, 211, (2, 20))
    expected = torch.autograd.grad(loss(model, tokens), list(model.parameters()))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_close(torch.autograd.grad(compiled(model, tokens), list(model.parameters())), expected)


def test_what_a_config_says_of_its_heads():
    config = GPT2_CONFIGS["gpt2-xl"]
    assert (config.n_kv_heads, config.head_dim) == (25, 64)
