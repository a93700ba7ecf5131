"""What generation, loss and evaluation ask of a model, and no more: two models that are no plain GPT-2 go through them.

One has a wrapped head, as an adapter has; the other has fewer key/value heads than heads, and rotary positions.
"""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from shared.checkpoints import save_model
from shared.choices import multiple_choice
from shared.evaluation import perplexity
from shared.generation import KVCache, decode_step, generate, prefill, stream
from shared.gpt import GPTConfig
from shared.instructions import answer_loss
from shared.llama import LlamaConfig, LlamaModel
from shared.lora import apply_lora, merge_lora
from shared.loss import IGNORE, mean_loss, next_token_loss
from shared.policy import token_log_probs
from shared.preference import sequence_log_probs
from shared.tokenizer import BPETokenizer
from tests.test_attention_and_gpt import lively

TEXT = "The lamp burned low, and low burned the lamp; nobody in the room had seen who lit it. " * 3
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
C = 16


@dataclass(frozen=True)
class GroupedConfig:
    vocab_size: int = 270
    context_length: int = C
    emb_dim: int = 24
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 10  # times n_heads this is not emb_dim


class GroupedBlock(nn.Module):
    """Grouped queries with rotary positions, added to the stream."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.n_heads, c.n_kv_heads, c.head_dim
        self.norm = nn.LayerNorm(c.emb_dim)
        self.q = nn.Linear(c.emb_dim, c.n_heads * c.head_dim)
        self.kv = nn.Linear(c.emb_dim, 2 * c.n_kv_heads * c.head_dim)
        self.out = nn.Linear(c.n_heads * c.head_dim, c.emb_dim)

    def forward(self, x, positions, cache=None):
        angles = positions[..., None, :, None] * 0.3 ** torch.arange(self.head_dim // 2)  # [(B,) 1, T, K / 2]

        def rotate(x):
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)

        h, mask = self.norm(x), None
        q = self.q(h).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # [B, H, T, K]
        k, v = self.kv(h).unflatten(-1, (2, self.kv_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q), rotate(k)
        if cache is not None:
            k, v, mask = cache(k, v)
        causal = mask is None and q.shape[2] > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return x + self.out(out.transpose(1, 2).flatten(2))


class GroupedModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.emb_dim)
        self.blocks = nn.ModuleList(GroupedBlock(config) for _ in range(config.n_layers))
        self.head = nn.Linear(config.emb_dim, config.vocab_size)

    def hidden(self, tokens, cache=None):
        positions = torch.arange(tokens.shape[1]) if cache is None else cache.positions
        x = self.token_embedding(tokens)
        for i, block in enumerate(self.blocks):
            x = block(x, positions, None if cache is None else cache.layer(i))
        return x

    def forward(self, tokens, cache=None):
        return self.head(self.hidden(tokens, cache))


class LowRank(nn.Module):
    """A head and a low-rank term beside it: it has no weight of its own."""

    def __init__(self, head, emb_dim, vocab_size, rank=3):
        super().__init__()
        self.head = head
        self.down, self.up = nn.Linear(emb_dim, rank, bias=False), nn.Linear(rank, vocab_size, bias=False)

    def forward(self, hidden):
        return self.head(hidden) + self.up(self.down(hidden))


def with_wrapped_head(model):
    model = copy.deepcopy(model)
    model.head = LowRank(model.head, model.config.emb_dim, model.config.vocab_size)
    nn.init.normal_(model.head.up.weight, std=2.0)
    return model


def plain_gpt():
    return lively(GPTConfig(270, C, 24, 4, 2), seed=1)


def grouped():
    torch.manual_seed(2)
    return GroupedModel(GroupedConfig()).eval()


def llama():
    config = LlamaConfig(270, C, emb_dim=24, n_heads=4, n_kv_heads=2, n_layers=2, hidden_dim=40)
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


MODELS = {"llama": llama, "llama, wrapped head": lambda: with_wrapped_head(llama()),
          "wrapped head": lambda: with_wrapped_head(plain_gpt()), "grouped": grouped,
          "grouped, wrapped head": lambda: with_wrapped_head(grouped())}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer().train(TEXT, 270).to_tiktoken("x")


def greedy_by_hand(model, prompt, n_new):
    """From all logits of a window that forgets half a context whenever the next token would not fit."""
    tokens, start = list(prompt), 0
    for _ in range(n_new):
        while len(tokens) - start > C:
            start += C // 2
        tokens.append(model(torch.tensor([tokens[start:]]))[0, -1].argmax().item())
    return tokens


@pytest.mark.parametrize("kind", MODELS)
def test_generation(kind):
    model = MODELS[kind]()
    expected = [greedy_by_hand(model, prompt, 40) for prompt in PROMPTS]
    for use_cache in (True, False):
        together = generate(model, PROMPTS, 40, use_cache=use_cache).tolist()
        assert [row[6 - len(prompt) :] for row, prompt in zip(together, PROMPTS, strict=True)] == expected
    assert generate(model, PROMPTS[0], 40)[0].tolist() == expected[0]
    assert [column[1].item() for column in stream(model, PROMPTS, 40)] == expected[1][1:]
    assert len(set(expected[0])) > 4  # the model is lively enough for the test to mean something


def test_the_wrap_makes_a_difference():
    for make in (plain_gpt, grouped):
        assert not torch.equal(generate(make(), PROMPTS, 20), generate(with_wrapped_head(make()), PROMPTS, 20))


def test_the_cache_has_the_shape_that_the_config_says():
    assert KVCache(grouped(), 5).keys.shape == (2, 5, 2, C, 10)


def test_rows_of_a_grouped_model_join_in_the_middle():
    model, texts = grouped(), {2: PROMPTS[0], 0: PROMPTS[1]}
    cache = KVCache(model, 3)
    logits = prefill(model, cache, list(texts), list(texts.values()))
    for step in range(30):
        if step == 4:
            texts[1] = PROMPTS[2]
            logits = torch.cat([logits, prefill(model, cache, [1], [PROMPTS[2]])])
        new = logits.argmax(dim=-1).tolist()
        texts = {row: [*text, token] for (row, text), token in zip(texts.items(), new, strict=True)}
        logits = decode_step(model, cache, list(texts), new)
    assert texts[2] == greedy_by_hand(model, PROMPTS[0], 30) and texts[1] == greedy_by_hand(model, PROMPTS[2], 26)
    assert texts[0] == greedy_by_hand(model, PROMPTS[1], 30)


@pytest.mark.parametrize("kind", MODELS)
def test_loss(kind):
    model = MODELS[kind]()
    inputs, targets = torch.randint(0, 270, (2, 3, C), generator=torch.Generator().manual_seed(0))
    targets[0, :7] = IGNORE
    expected = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    for loss_fn in (next_token_loss, answer_loss):
        model.zero_grad()
        loss = loss_fn(model, inputs, targets)
        loss.backward()
        assert_close(loss, expected)
        assert_close([p.grad for p in model.parameters()], list(gradients))
    assert math.isclose(mean_loss(model, [(inputs, targets)]), expected.item(), rel_tol=1e-2)  # also in bfloat16


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_perplexity(kind, tokenizer):
    model, text = MODELS[kind](), TEXT[:12]
    ids = torch.tensor([tokenizer.eot_token, *tokenizer.encode_ordinary(text)])
    assert 2 < len(ids) <= C
    expected = F.cross_entropy(model(ids[None, :-1])[0], ids[1:]).exp().item()
    assert math.isclose(perplexity(model, tokenizer, [text]).per_token, expected, rel_tol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_multiple_choice(kind, tokenizer):
    model, letters = MODELS[kind](), "abcdefgh"
    queries, right = ["The", "low", "lamp", "a", "the room"], []
    options = [tokenizer.encode_ordinary(" " + letter) for letter in letters]
    for query in queries:
        before = [tokenizer.eot_token, *tokenizer.encode_ordinary(query)]
        losses = [F.cross_entropy(model(torch.tensor([before + ids]))[0, len(before) - 1 : -1], torch.tensor(ids))
                  for ids in options]  # fmt: skip
        right.append(torch.stack(losses).argmin().item())
    items = [{"query": query, "choices": list(letters), "gold": gold}
             for query, gold in zip(queries, right, strict=True)]  # fmt: skip
    assert multiple_choice(model, tokenizer, items).share == 1
    wrong = [item | {"gold": (item["gold"] + 1) % 8} for item in items]
    assert multiple_choice(model, tokenizer, wrong).share == 0


@pytest.mark.parametrize(("kind", "named"), [("wrapped head", "head"), ("grouped", "blocks.0|GroupedConfig")])
def test_export_refuses_what_the_folder_cannot_hold(kind, named, tokenizer, tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match=named):
        save_model(MODELS[kind](), tokenizer, folder)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_log_probabilities(kind):
    model, tokens = MODELS[kind](), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    expected = model(tokens[:, :-1]).log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
    assert_close(token_log_probs(model, tokens, torch.ones(2, 3, dtype=torch.bool)), expected)
    assert_close(sequence_log_probs(model, tokens[:, :-1], tokens[:, 1:]), expected.sum(dim=1))


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_adapters_begin_as_nothing_and_merge(kind):
    model, tokens = MODELS[kind](), torch.tensor([[1, 2, 3]])
    before = model(tokens)
    assert_close(apply_lora(model, rank=2)(tokens), before)
    merge_lora(model)
    assert_close(model(tokens), before)
