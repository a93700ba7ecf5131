"""The tokenizer against tiktoken and `transformers`, its files there and back."""

import json
import random
import re
import unicodedata

import pytest
import tiktoken
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import data
from shared import tokenizer as bpe
from shared.tokenizer import END_OF_TEXT, BPETokenizer, from_tiktoken, load_tokenizer
from shared.tokenizer_files import read_bpe_files

NASTY = [
    "a" + " " * 200 + "b", "\n" * 150 + " x", " \t" * 99,
    "I'll say it's they'RE we've I'M", "  two  spaces   three\n\n\ttab \r\n", "a\u00a0b\u2003c\u200bd", "", " ", "\n",
    "naïve café Ångström e\u0301", "你好，世界！こんにちは", "👩‍👩‍👧‍👦 🇨🇭 👍🏽",
    "def f(x):\n    return x**2  # ok\n", "x" * 500, "1234567890 3.14 ½ ² ٣", "<|endoftext|>",
    "\ud83d broken \udc00 halves", "\ud83d\ude00 two halves", "مرحبا שלום", "\x00\x01\x7f\xad",
]  # fmt: skip


@pytest.fixture(scope="module")
def both():
    """Our encoder and tiktoken's, over GPT-2's files where they are at hand, else over the bundled ones."""
    theirs = load_tokenizer("gpt2")
    return from_tiktoken(theirs), theirs


@pytest.mark.parametrize("string", NASTY)
def test_encode_equals_tiktoken_on_nasty_strings(both, string):
    ours, theirs = both
    assert ours.encode_ordinary(string) == theirs.encode_ordinary(string)
    assert ours.decode(ours.encode_ordinary(string)) == theirs.decode(theirs.encode_ordinary(string))


# Characters that this Python knows no meaning of ("Cn") may be letters to one library and not yet to the other.
@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cn"]), max_size=60))
def test_encode_equals_tiktoken(both, string):
    ours, theirs = both
    ids = ours.encode_ordinary(string)
    assert ids == theirs.encode_ordinary(string)
    assert ours.decode(ids) == bpe.valid_unicode(string)


@pytest.mark.parametrize("blanks", [" " * 2_000_000, "\n \t" * 500_000, "\u3000" * 1_000_000])
def test_tiktokens_encoding_takes_endless_blanks(both, blanks):
    """With GPT-2's own rule tiktoken's matcher panics at a million blanks, with an exception that is no Exception."""
    _, theirs = both
    for string in (blanks, f"a{blanks} b\ud83d", blanks + END_OF_TEXT):
        ids = theirs.encode_ordinary(string)
        assert theirs.decode(ids) == bpe.valid_unicode(string)
        assert theirs.eot_token not in ids


def test_the_encoders_differ_at_new_letters_only(both):
    """Behind a letter, 're is a piece of its own; behind another sign, the quote goes to that."""
    ours, theirs = both
    places = [*range(0x3400), *range(0xA000, 0xAC00), *range(0xD7B0, 0x20000), *range(0xE0000, 0xE0200)]
    assigned = [chr(i) for i in places if unicodedata.category(chr(i)) not in ("Cn", "Cs")]
    assert len(assigned) > 40_000
    for start in range(0, len(assigned), 1000):
        string = "\n".join(f"{c}'re" for c in assigned[start : start + 1000])
        assert ours.encode_ordinary(string) == theirs.encode_ordinary(string), hex(ord(assigned[start]))


@pytest.mark.parametrize("alphabet", ["a", "ab", "the", "abcdefghijklmnopqrstuvwxyz", "né你🙂", "=-", " \n"])
def test_long_words_equal_tiktoken_and_take_no_longer_letter_by_letter(both, alphabet):
    ours, theirs = both
    chance, merges = random.Random(0), CountedDict(ours.merges)
    looked_up = []
    for n in (2_000, 8_000):
        word = "".join(chance.choices(alphabet, k=n))
        merges.asked = 0
        ids = [ours.byte_ids[b] for b in word.encode("utf-8")]
        assert bpe.apply_merges(ids, merges) == theirs._core_bpe.encode_single_piece(word.encode("utf-8"))
        assert ours.encode_ordinary(word) == theirs.encode_ordinary(word)
        looked_up.append(merges.asked)
    assert looked_up[1] < 6 * looked_up[0]  # four times the letters


class CountedDict(dict):
    """A dictionary that counts how often it is asked."""

    asked = 0

    def __contains__(self, key):
        self.asked += 1
        return super().__contains__(key)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 12), st.integers(0, 2**32))
def test_merges_are_applied_as_in_the_definition(ids, n_merges, seed):
    """Again and again, the pair that was learned first is merged wherever it stands."""
    chance, merges = random.Random(seed), {}
    while len(merges) < n_merges:
        merges[tuple(chance.choices(range(4 + len(merges)), k=2))] = 4 + len(merges)
    plain = list(ids)
    while known := [pair for pair in zip(plain, plain[1:], strict=False) if pair in merges]:
        first = min(known, key=merges.get)
        plain = bpe.merge_pair(plain, first, merges[first])
    assert bpe.apply_merges(ids, merges) == plain


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
        words = {tuple(bpe.merge_pair(list(ids), best, new_id)): n for ids, n in words.items()}
    return merges


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=12).map(tuple), st.integers(1, 5)),
                min_size=1, max_size=8, unique_by=lambda x: x[0]), st.integers(0, 30))  # fmt: skip
def test_learned_merges_equal_the_definition(pieces, n_merges):
    fast = bpe.learn_merges([list(ids) for ids, _ in pieces], [n for _, n in pieces], n_merges)
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


def test_training_learns_nothing_from_special_tokens():
    documents = ["a low lower lowest tower", "the end of a text", "slow flow"] * 50
    tokenizer = BPETokenizer().train(END_OF_TEXT.join(documents), 300)
    made = [token.decode("utf-8", "replace") for token in tokenizer.tokens[256:]]
    assert not [token for token in made if "<" in token or "|" in token or "endof" in token]
    pieces = [piece for document in documents for piece in bpe.regex.findall(bpe.GPT2_SPLIT, document)]
    counted = bpe.Counter(pieces)
    words = [[tokenizer.byte_ids[b] for b in piece.encode()] for piece in counted]
    assert list(tokenizer.merges) == bpe.learn_merges(words, list(counted.values()), 300 - 257)
    several = BPETokenizer().train("a<x>ab<x><x>b<xy>a" * 9, 262, ["<x>", "<xy>"])
    assert not [token for token in several.tokens[256:] if b"<" in token or b"x" in token]
    plain = BPETokenizer().train(END_OF_TEXT * 9, 280, special_tokens=())  # here it is text
    assert b"endoftext" in plain.tokens


@pytest.mark.parametrize("token", ["PAD", "low", "<x", "a>", "<>", "x[PAD]", "<a\nb>"])
def test_special_tokens_that_a_file_cannot_show_are_refused_at_save(tmp_path, token):
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    odd = BPETokenizer(list(tokenizer.merges), ["<a>", token])
    with pytest.raises(ValueError, match=re.escape(repr(token)) + " must be written as <...> or"):
        odd.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_special_token_that_is_an_ordinary_one_too_is_refused_at_save(tmp_path):
    byte_ids = BPETokenizer().byte_ids
    merges = [(byte_ids[ord("[")], byte_ids[ord("0")]), (256, byte_ids[ord("]")])]
    with pytest.raises(ValueError, match="'.0.' must be .* no other token"):
        BPETokenizer(merges, ["[0]"]).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("token", ["<x>", "[PAD]", "<|im_start|>", "< a b >", "[你]"])
def test_special_tokens_come_back(tmp_path, token):
    tokenizer = BPETokenizer(BPETokenizer().train("low lower lowest", 262).merges, [END_OF_TEXT, token])
    tokenizer.save(tmp_path)
    assert BPETokenizer().load(tmp_path).special_tokens == tokenizer.special_tokens
    assert load_tokenizer(tmp_path).encode(f"low{token}", allowed_special="all")[-1] == tokenizer.n_vocab - 1


def test_of_two_special_tokens_at_one_place_the_longer_counts():
    tokenizer = BPETokenizer(special_tokens=["<a>", "<a>b>"])
    ids = tokenizer.encode("<a>b><a><a>b", allowed_special="all")
    assert ids == [257, 256, 256, *tokenizer.encode("b")]


@pytest.mark.parametrize("content", [b"[]", b"3", b"{", b"\xff", b"[" * 100_000, b'{"a": "b"}', b'{"a": null}',
                                     b'{"a": [1]}'])  # fmt: skip
def test_ids_of_another_form_are_refused_with_the_path(tmp_path, content):
    BPETokenizer().train("low lower lowest", 262).save(tmp_path)
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(ValueError, match="vocab.json is damaged") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 300


def test_files_with_a_byte_order_mark_and_files_that_are_no_utf8(tmp_path):
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    tokenizer.save(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert BPETokenizer().load(tmp_path).merges == tokenizer.merges
    (tmp_path / "merges.txt").write_text("l o\n", encoding="utf-16")
    with pytest.raises(ValueError, match="merges.txt is damaged: 'utf-8' codec") as caught:
        BPETokenizer().load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_tokenizer_refuses_bad_input(tmp_path):
    with pytest.raises(ValueError, match="257"):
        BPETokenizer().train("abc", 200)
    with pytest.raises(ValueError, match="empty"):
        BPETokenizer().train("", 300)
    with pytest.raises(FileNotFoundError, match="merges.txt"):
        BPETokenizer().load(tmp_path)
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    with pytest.raises(ValueError, match="5000"):
        tokenizer.decode([5000])
    with pytest.raises(ValueError, match="-1"):
        tokenizer.decode([-1])
    tokenizer.save(tmp_path)
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges + "zz qq\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line"):
        BPETokenizer().load(tmp_path)
    (tmp_path / "merges.txt").write_text("\n".join(merges.splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="vocab.json"):
        BPETokenizer().load(tmp_path)
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        BPETokenizer().load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(ValueError):
        BPETokenizer().load(tmp_path)


@pytest.mark.parametrize("tokens", [END_OF_TEXT, "", ["<a>", "<a>"], ("<a>", ""), ["<a>", None]])
def test_special_tokens_that_are_no_different_names_are_refused(tokens):
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    for use in (lambda: BPETokenizer((), tokens), lambda: tokenizer.train("a text", 300, tokens)):
        with pytest.raises(ValueError, match=f"special_tokens is {re.escape(repr(tokens))}; it must be a list of"):
            use()
    assert tokenizer.n_vocab == 262 and tokenizer.encode("low") == BPETokenizer(tokenizer.merges).encode("low")


@pytest.mark.parametrize("allowed", [END_OF_TEXT, "", "ALL", ["<x>"], {END_OF_TEXT, ""}, [END_OF_TEXT, "<x>"]])
def test_only_special_tokens_that_there_are_can_be_allowed(allowed):
    with pytest.raises(ValueError, match=r"allowed_special is .*; it must be 'all' or some of \['<|endoftext|>'\]"):
        BPETokenizer(special_tokens=[END_OF_TEXT]).encode(f"one{END_OF_TEXT}<x>", allowed)


@pytest.mark.parametrize("size", [256, 0, -1, 300.0, 300.5, float("nan"), True])
def test_sizes_of_a_vocabulary_that_are_none_are_refused(size):
    with pytest.raises(ValueError, match=f"vocab_size is {size}; bytes and special tokens need an int of at least 257"):
        BPETokenizer().train("low lower lowest", size)


def test_a_full_disk_leaves_the_old_files(tmp_path):
    resource = pytest.importorskip("resource")
    BPETokenizer().train("low lower lowest", 262).save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match=f"{tmp_path} could not be written"):
            BPETokenizer().train("high higher highest", 270).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_failed_load_leaves_the_tokenizer_as_it_was(tmp_path):
    tokenizer = BPETokenizer().train("low lower lowest", 262)
    before = tokenizer.encode_ordinary("lowest")
    with pytest.raises(FileNotFoundError):
        tokenizer.load(tmp_path)
    assert tokenizer.encode_ordinary("lowest") == before


def test_to_tiktoken_is_an_encoding():
    assert isinstance(BPETokenizer().train("aaa bbb", 260).to_tiktoken("x"), tiktoken.Encoding)


@pytest.fixture(scope="module")
def small():
    story = (data.places.SAMPLES / "the-lamp-room.txt").read_text(encoding="utf-8")
    return BPETokenizer().train(story, 600)


def test_merges_come_back_from_tiktoken(small):
    again = from_tiktoken(small.to_tiktoken("x"))
    assert again.merges == small.merges and list(again.merges) == list(small.merges)
    assert again.tokens == small.tokens and again.special_tokens == small.special_tokens


@pytest.mark.parametrize("place", ["sample", "cache"])
def test_merges_come_back_from_tiktoken_as_they_stand_in_the_files(place, monkeypatch):
    monkeypatch.setenv("LLM_OFFLINE", "1")
    if place == "sample":
        files = [data.places.SAMPLES / "bpe" / name for name in ("merges.txt", "vocab.json")]
    else:
        files = [data.fetch("gpt2_vocab"), data.fetch("gpt2_encoder")]
    if place == "cache" and any(map(data.places.is_sample, files)):
        pytest.skip("GPT-2's files are not at hand")
    stored = BPETokenizer(*read_bpe_files(*files))
    again = from_tiktoken(stored.to_tiktoken("x"))
    assert list(again.merges) == list(stored.merges) and again.special_tokens == stored.special_tokens


@pytest.mark.parametrize("kind", ["other rule", "other bytes", "gap", "unmergeable"])
def test_foreign_encodings_are_refused(small, kind):
    ranks = {token: i for i, token in enumerate(small.tokens)}
    rule, special = small.to_tiktoken("x")._pat_str, dict(small.special_tokens)
    if kind == "other rule":
        rule = r"\p{N}{1,2}|[^\p{N}]+"
    elif kind == "other bytes":
        ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    elif kind == "gap":
        special = {"<|endoftext|>": 700}
    else:
        ranks = {token: i for token, i in ranks.items() if i < 598} | {b"qqqqqqqzz": 598}
    foreign = tiktoken.Encoding("foreign", pat_str=rule, mergeable_ranks=ranks, special_tokens=special)
    with pytest.raises(ValueError, match="foreign is not of GPT-2's kind"):
        from_tiktoken(foreign)


# --- the files -------------------------------------------------------------------------------------------------------


def test_a_folder_holds_the_files_that_transformers_reads(small, tmp_path):
    small.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    theirs = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for string in ["The lamp room, it's 12 o'clock.", "naïve  漢字\n\n x", f"one{END_OF_TEXT}two"]:
        assert theirs(string).input_ids == small.encode(string, allowed_special="all")


def test_a_tokenizer_json_of_transformers_is_the_same_encoding(small, tmp_path):
    small.save(tmp_path / "two")
    files = [str(tmp_path / "two" / name) for name in ("vocab.json", "merges.txt")]
    transformers.GPT2TokenizerFast(*files).save_pretrained(tmp_path / "one")
    for name in ("vocab.json", "merges.txt"):  # not all versions write them
        (tmp_path / "one" / name).unlink(missing_ok=True)
    again = BPETokenizer().load(tmp_path / "one")
    assert list(again.merges) == list(small.merges) and again.special_tokens == small.special_tokens
    assert load_tokenizer(tmp_path / "one").name == "one"


def test_a_folder_with_gpt2s_own_names_is_refused_by_the_file_that_it_lacks(small, tmp_path):
    small.save(tmp_path)
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'merges.txt'} does not exist")):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        BPETokenizer().load(tmp_path)


@pytest.mark.parametrize("missing", ["bpe/vocab.bpe", "bpe/encoder.json"])
def test_one_file_of_gpt2_and_one_sample_do_not_go_together(missing, tmp_path, monkeypatch, capsys):
    """Where one of the two cannot be had, both are the bundled ones."""
    monkeypatch.setenv("LLM_OFFLINE", "1")
    real = [data.fetch("gpt2_vocab"), data.fetch("gpt2_encoder")]
    if any(map(data.places.is_sample, real)):
        pytest.skip("GPT-2's files are not at hand")
    monkeypatch.setenv("LLM_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("LLM_MIRROR", raising=False)
    (tmp_path / "bpe").mkdir()
    for file, name in zip(real, ("bpe/vocab.bpe", "bpe/encoder.json"), strict=True):
        if name != missing:
            (tmp_path / name).write_bytes(file.read_bytes())
    assert load_tokenizer("gpt2").name == "bundled-bpe"
    assert "using the bundled sample" in capsys.readouterr().out


def test_a_folder_called_by_a_relative_path_gives_its_name(small, tmp_path, monkeypatch):
    small.save(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert load_tokenizer(".").name == "mine"
