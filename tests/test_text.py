"""The tokenizer against tiktoken, the loader against plain slices."""

import json

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import data, text
from shared.text import END_OF_TEXT, BPETokenizer, TokenDataset, create_dataloader, load_tokenizer

NASTY = [
    "I'll say it's they'RE we've I'M", "  two  spaces   three\n\n\ttab \r\n", "a\u00a0b\u2003c\u200bd", "", " ", "\n",
    "naïve café Ångström e\u0301", "你好，世界！こんにちは", "👩‍👩‍👧‍👦 🇨🇭 👍🏽",
    "def f(x):\n    return x**2  # ok\n", "x" * 500, "1234567890 3.14 ½ ² ٣", "<|endoftext|>",
    "\ud83d broken \udc00 halves", "\ud83d\ude00 two halves", "مرحبا שלום", "\x00\x01\x7f\xad",
]  # fmt: skip


@pytest.fixture(scope="module")
def both():
    """Our encoder and tiktoken's, over GPT-2's files where they are at hand, else over the bundled ones."""
    files = [data.fetch("gpt2_vocab"), data.fetch("gpt2_encoder")]
    if any(map(data.places.is_sample, files)):
        ours = BPETokenizer().load(data.places.SAMPLES / "bpe")
    else:
        ours = BPETokenizer(*text.read_bpe_files(*files))
    return ours, load_tokenizer("gpt2")


@pytest.mark.parametrize("string", NASTY)
def test_encode_equals_tiktoken_on_nasty_strings(both, string):
    ours, theirs = both
    assert ours.encode_ordinary(string) == theirs.encode_ordinary(string)
    assert ours.decode(ours.encode_ordinary(string)) == theirs.decode(theirs.encode_ordinary(string))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_encode_equals_tiktoken(both, string):
    ours, theirs = both
    ids = ours.encode_ordinary(string)
    assert ids == theirs.encode_ordinary(string)
    assert ours.decode(ids) == text.valid_unicode(string)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([END_OF_TEXT, " ", "a", "\n", "end", "<|", "|>"]), max_size=8).map("".join))
def test_special_tokens_equal_tiktoken(both, string):
    ours, theirs = both
    assert ours.encode(string, allowed_special="all") == theirs.encode(string, allowed_special="all")
    if END_OF_TEXT in string:
        with pytest.raises(ValueError, match="special token"):
            ours.encode(string)


def test_gpt2_has_its_published_ids():
    tokenizer = load_tokenizer("gpt2")
    if tokenizer.name != "gpt2":
        pytest.skip("GPT-2's files are not at hand")
    assert tokenizer.n_vocab == 50257 and tokenizer.eot_token == 50256
    assert tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]


def test_bundled_encoding_is_in_gpt2_format_and_is_used_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("LLM_MIRROR", raising=False)
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.name == "bundled-bpe" and tokenizer.n_vocab == 8192
    assert "sample" in capsys.readouterr().out
    sample = (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(tokenizer.encode_ordinary(sample)) == sample
    assert len(sample) / len(tokenizer.encode_ordinary(sample)) > 3


def slow_merges(pieces, n_merges):
    """Byte-pair encoding as in its definition: count all pairs again for every merge."""
    words, merges = {tuple(ids): n for ids, n in pieces}, []
    for new_id in range(256, 256 + n_merges):
        counts = {}
        for ids, n in words.items():
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + n
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = {tuple(text.merge_pair(list(ids), best, new_id)): n for ids, n in words.items()}
    return merges


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=12).map(tuple), st.integers(1, 5)),
                min_size=1, max_size=8, unique_by=lambda x: x[0]), st.integers(0, 30))  # fmt: skip
def test_learned_merges_equal_the_definition(pieces, n_merges):
    fast = text.learn_merges([list(ids) for ids, _ in pieces], [n for _, n in pieces], n_merges)
    assert fast == slow_merges(pieces, n_merges)


def test_train_save_load_round_trip(tmp_path):
    story = (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
    tokenizer = BPETokenizer().train(story, 600)
    assert tokenizer.n_vocab == 600 and tokenizer.eot_token == 599
    tokenizer.save(tmp_path)
    again = BPETokenizer().load(tmp_path)
    compiled = load_tokenizer(tmp_path)
    for string in [story, *NASTY]:
        ids = tokenizer.encode_ordinary(string)
        assert again.encode_ordinary(string) == ids == compiled.encode_ordinary(string)
    assert tokenizer.encode(f"a{END_OF_TEXT}b", {END_OF_TEXT})[1] == 599


def test_tokenizer_refuses_bad_input(tmp_path):
    with pytest.raises(ValueError, match="257"):
        BPETokenizer().train("abc", 200)
    with pytest.raises(ValueError, match="empty"):
        BPETokenizer().train("", 300)
    with pytest.raises(FileNotFoundError, match="vocab.bpe"):
        BPETokenizer().load(tmp_path)
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    with pytest.raises(ValueError, match="5000"):
        tokenizer.decode([5000])
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])
    tokenizer.save(tmp_path)
    merges = (tmp_path / "vocab.bpe").read_text(encoding="utf-8")
    (tmp_path / "vocab.bpe").write_text(merges + "zz qq\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line"):
        BPETokenizer().load(tmp_path)
    (tmp_path / "vocab.bpe").write_text("\n".join(merges.splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="encoder.json"):
        BPETokenizer().load(tmp_path)
    (tmp_path / "encoder.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        BPETokenizer().load(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(ValueError):
        BPETokenizer().load(tmp_path)


def test_failed_load_leaves_the_tokenizer_as_it_was(tmp_path):
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    before = tokenizer.encode_ordinary("lowest")
    with pytest.raises(FileNotFoundError):
        tokenizer.load(tmp_path)
    assert tokenizer.encode_ordinary("lowest") == before


def test_to_tiktoken_is_an_encoding():
    assert isinstance(BPETokenizer().train("aaa bbb", 260).to_tiktoken("x"), tiktoken.Encoding)


@pytest.mark.parametrize(("n", "length", "stride"), [(10, 4, 4), (10, 4, 1), (9, 4, 4), (5, 4, 1), (23, 5, 7)])
def test_windows_equal_plain_slices(n, length, stride):
    ids = list(range(100, 100 + n))
    windows = [ids[i : i + length + 1] for i in range(0, n, stride) if len(ids[i : i + length + 1]) == length + 1]
    dataset = TokenDataset(ids, length, stride)
    assert len(dataset) == len(windows)
    for (inputs, targets), window in zip((dataset[i] for i in range(len(dataset))), windows, strict=True):
        assert inputs.tolist() == window[:-1] and targets.tolist() == window[1:]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_loader_order_is_fixed_by_its_seed():
    def order(seed):
        return torch.cat([x[:, 0] for x, _ in create_dataloader(range(200), 4, 3, seed=seed)]).tolist()

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))
    assert len(order(1)) == 48  # 49 windows, the last incomplete batch dropped


@pytest.mark.parametrize(("ids", "length"), [([], 4), ([1], 4), ([1, 2, 3, 4], 4), ([1, 2], 0)])
def test_too_short_texts_are_refused(ids, length):
    with pytest.raises(ValueError, match=str(length)):
        TokenDataset(ids, length)


def test_too_large_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size 8"):
        create_dataloader(range(20), 4, 8)
