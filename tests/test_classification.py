"""Classification: `transformers` as the oracle, padding and batches, messages as they come, training."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from shared.batches import pad
from shared.checkpoints import save_model
from shared.classification import (
    LABELS,
    LabelledTexts,
    SpamClassifier,
    balance,
    class_weights,
    classification_loss,
    collate,
    deduplicate,
    encode,
    freeze_except,
    last_hidden,
    parse_messages,
    split,
    train_classifier,
)
from shared.gpt import GPTConfig, GPTModel
from shared.loss import mean_loss
from shared.tokenizer import BPETokenizer

ROOT = Path(__file__).resolve().parents[1]
STORY = (ROOT / "shared/data/samples/the-lamp-room.txt").read_text(encoding="utf-8")
CONFIG = GPTConfig(400, 48, emb_dim=32, n_heads=4, n_layers=2, drop_rate=0.1)
TEXTS = [
    "See you at 8 in the lamp room?", "", "FREE entry!! Txt WIN to 87121 now &lt;#&gt; &amp; claim £500", "ok",
    "\U0001f600\U0001f389\U0001f389", " ", "漢字 naïve \u2028 and \x85 so on", "<|endoftext|>", "the " * 300,
    'He said "no" and "never"', "\ud83d half a pair", "a\0b",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer().train(STORY, CONFIG.vocab_size).to_tiktoken("x")


def make(tokenizer, config=CONFIG, labels=LABELS, seed=1):
    """A classifier whose every number is random and counts: nothing is zero or one."""
    torch.manual_seed(seed)
    classifier = SpamClassifier(GPTModel(config), tokenizer, labels).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        classifier.head.weight.mul_(5)
    return classifier


@pytest.fixture(scope="module")
def classifier(tokenizer):
    return make(tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier):
    folder = tmp_path_factory.mktemp("models") / "spam_model"
    classifier.save(folder)
    return folder


def easy_messages(n, seed=0):
    """(label, text): spam speaks of a prize; every message has other words around it, and its own number."""
    generator, words = torch.Generator().manual_seed(seed), STORY.split()[:300]

    def some(k):
        return " ".join(words[i] for i in torch.randint(300, (k,), generator=generator).tolist())

    messages = []
    for i in range(n):
        before, after = torch.randint(0, 6, (2,), generator=generator).tolist()
        label = LABELS[i % 2]
        key = "you win a prize" if label == "spam" else "see you later"
        messages.append((label, f"{some(before)} {key} {some(after)} {i}"))
    return messages


# --- with transformers as the oracle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "labels"), [
    (CONFIG, LABELS), (replace(CONFIG, tie_weights=False), LABELS), (replace(CONFIG, qkv_bias=False), LABELS),
    (replace(CONFIG, n_layers=1, emb_dim=24, n_heads=2, context_length=30), ("no", "perhaps", "yes")),
    (replace(CONFIG, vocab_size=450, n_heads=1), LABELS),  # more rows than the tokenizer has tokens
], ids=["tied", "untied", "no qkv bias", "three labels", "larger vocabulary"])  # fmt: skip
def test_transformers_gives_the_same_logits(tmp_path, tokenizer, config, labels):
    import transformers

    ours = make(tokenizer, config, labels)
    ours.save(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "GPT2ForSequenceClassification" and not theirs.training
    assert theirs.config.id2label == dict(enumerate(labels)) and theirs.config.num_labels == len(labels)
    assert theirs.config.label2id == {label: i for i, label in enumerate(labels)}
    rows = [torch.tensor(encode(tokenizer, text, config.context_length)) for text in TEXTS]
    tokens, lengths = pad(rows, theirs.config.pad_token_id)
    assert len(set(lengths.tolist())) > 4 and lengths.max() == config.context_length
    with torch.no_grad():
        expected = ours(tokens, lengths)
        assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-5)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        assert_close(theirs(tokens, attention_mask=mask.long()).logits, expected, rtol=0, atol=1e-5)
        for row, logits in zip(rows, expected, strict=True):
            assert_close(theirs(row[None]).logits[0], logits, rtol=0, atol=1e-5)
    assert expected.std() > 0.1 and len(expected.argmax(1).unique()) > 1  # logits that could differ


def test_pipeline_of_transformers_gives_the_same_labels(folder, classifier):
    import transformers

    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    texts = [text for text in TEXTS if text.strip() and "<|endoftext|>" not in text and "\ud83d half" not in text]
    labels, probabilities = classifier.predict(texts)
    found = pipe(texts, batch_size=3, truncation=True, top_k=None)
    for label, scores, theirs in zip(labels, probabilities, found, strict=True):
        theirs = {one["label"]: one["score"] for one in theirs}
        assert max(theirs, key=theirs.get) == label
        assert [theirs[name] for name in LABELS] == pytest.approx(scores.tolist(), abs=1e-5)


def test_we_load_what_transformers_saves(folder, tmp_path, classifier):
    import transformers

    transformers.AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    ours = SpamClassifier.load(tmp_path)
    assert ours.labels == LABELS
    assert_close(ours.predict(TEXTS)[1], classifier.predict(TEXTS)[1], rtol=0, atol=1e-5)


# --- ours, there and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path, tokenizer, tied):
    labels = ("ham", "spam", "unsure, perhaps")
    ours = make(tokenizer, replace(CONFIG, tie_weights=tied), labels)
    ours.save(tmp_path / "a")
    again = SpamClassifier.load(tmp_path / "a")
    assert again.labels == labels and not again.training and again.tokenizer.name == "a"
    expected = dict(ours.named_parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert set(expected) == {name for name, _ in again.named_parameters()}
    assert_close(again.predict(TEXTS)[1], ours.predict(TEXTS)[1], rtol=0, atol=1e-6)
    again.save(tmp_path / "a")  # over the folder that it was read from
    third = SpamClassifier.load(tmp_path / "a")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), third.parameters(), strict=True))
    assert torch.equal(again.predict(TEXTS)[1], third.predict(TEXTS)[1])


def test_what_is_no_classifier_is_refused(tmp_path, folder, classifier):
    with pytest.raises(FileNotFoundError, match="config.json"):
        SpamClassifier.load(tmp_path / "nowhere")
    save_model(classifier.gpt, classifier.tokenizer, tmp_path / "gpt")
    with pytest.raises(ValueError, match="gpt is no classifier.*score.weight"):
        SpamClassifier.load(tmp_path / "gpt")
    classifier.save(tmp_path / "mute")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(ValueError, match="mute is no classifier.*tokenizer"):
        SpamClassifier.load(tmp_path / "mute")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classifier.save(tmp_path / "nameless")
    del config["id2label"]
    (tmp_path / "nameless" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert SpamClassifier.load(tmp_path / "nameless").labels == ("LABEL_0", "LABEL_1")


# --- the last real token, padding, batches ---------------------------------------------------------------------------


def test_the_last_real_token_is_read(classifier):
    tokens = torch.randint(0, CONFIG.vocab_size, (3, 10), generator=torch.Generator().manual_seed(0))
    every = classifier(tokens)
    assert every.shape == (3, 10, 2)
    chosen = classifier(tokens, torch.tensor([10, 1, 4]))
    assert_close(chosen, torch.stack([every[0, 9], every[1, 0], every[2, 3]]), rtol=1e-5, atol=1e-5)
    assert classifier.head.bias is None
    hidden = classifier.gpt.hidden(tokens)
    assert torch.equal(every, F.linear(hidden, classifier.head.weight))
    assert_close(last_hidden(classifier.gpt, tokens, torch.tensor([10, 1, 4])), hidden[[0, 1, 2], [9, 0, 3]])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_padding_and_company_change_nothing(classifier, data):
    texts = data.draw(st.lists(st.text(max_size=60), min_size=1, max_size=9))
    ids = [torch.tensor(encode(classifier.tokenizer, text, 48)) for text in texts]
    extra = data.draw(st.integers(0, 48 - max(map(len, ids))))
    pad_id = data.draw(st.integers(0, CONFIG.vocab_size - 1))
    with torch.no_grad():
        alone = torch.cat([classifier(row[None], torch.tensor([len(row)])) for row in ids])
        tokens, lengths = pad(ids, pad_id)
        together = classifier(F.pad(tokens, (0, extra), value=pad_id), lengths)
    assert_close(together, alone, rtol=0, atol=1e-5)
    batch_size = data.draw(st.integers(1, 10))
    probabilities = classifier.predict(texts, batch_size=batch_size)[1]
    assert_close(probabilities, alone.softmax(1), rtol=0, atol=1e-5)


def test_predictions_come_in_the_order_of_the_texts(classifier):
    texts = [TEXTS[i] for i in torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(3))] * 3
    labels, probabilities = classifier.predict(texts, batch_size=4)
    for text, label, row in zip(texts, labels, probabilities, strict=True):
        alone_label, alone = classifier.predict([text])
        assert_close(row, alone[0], rtol=0, atol=1e-5)
        assert alone_label == [label] == [LABELS[row.argmax()]]
    assert len(set(labels)) == 2 and probabilities.shape == (len(texts), 2)
    assert_close(probabilities.sum(1), torch.ones(len(texts)))


def test_nothing_to_predict(classifier):
    labels, probabilities = classifier.predict([])
    assert labels == [] and probabilities.shape == (0, 2)


def test_an_empty_message_is_read_as_end_of_text(classifier):
    end = classifier.tokenizer.eot_token
    expected = classifier(torch.tensor([[end]]))[0].softmax(1)
    assert_close(classifier.predict([""])[1], expected)
    assert encode(classifier.tokenizer, "", 5) == [end]
    assert end not in encode(classifier.tokenizer, "<|endoftext|>", 99)  # written out, it is plain text


def test_a_long_message_is_cut_at_the_end_of_the_context(classifier):
    context = CONFIG.context_length
    ids = classifier.tokenizer.encode_ordinary("the lamp " * 5000 + "WIN a prize")
    text = classifier.tokenizer.decode(ids[:context])
    assert encode(classifier.tokenizer, "the lamp " * 5000 + "WIN a prize", context) == ids[:context]
    long, short = classifier.predict(["the lamp " * 5000 + "WIN a prize", text])[1]
    assert_close(long, short, rtol=0, atol=1e-6)


def test_predict_leaves_the_mode_as_it_was_and_uses_no_dropout(tokenizer):
    ours = make(tokenizer)
    expected = ours.predict(TEXTS)[1]
    ours.train()
    assert torch.equal(ours.predict(TEXTS)[1], expected) and ours.training and ours.gpt.blocks[0].training
    ours.eval()
    ours.predict(TEXTS)
    assert not ours.training and ours.predict(TEXTS)[1].requires_grad is False


# --- messages in and out ---------------------------------------------------------------------------------------------


def test_lines_become_messages():
    text = (
        '\ufeffham\tHi "there", you & I\r\n\n   \nspam\tWIN &lt;b&gt; now\t\tcall\nham\tline\u2028one\x85two\x0cthree\n'
        "ham\t\nspam\t\U0001f600\n"
    )
    assert parse_messages(text) == [
        ("ham", 'Hi "there", you & I'), ("spam", "WIN &lt;b&gt; now\t\tcall"), ("ham", "line\u2028one\x85two\x0cthree"),
        ("ham", ""), ("spam", "\U0001f600"),
    ]  # fmt: skip
    assert parse_messages("yes\ta\nno\tb", labels=("no", "yes")) == [("yes", "a"), ("no", "b")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.text(st.characters(exclude_characters="\r\n"), max_size=20)),
                min_size=1), st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_what_was_written_is_read(messages, end):
    assert parse_messages(end.join(f"{label}\t{text}" for label, text in messages)) == messages


@pytest.mark.parametrize(("text", "match"), [
    ("ham\thello\nspam\n", r"line 2 has no tab.*'spam'"),
    ("ham\tx\n\n\nham hello", "line 4 has no tab"),
    ("ham,hello there\nspam,win\n", "line 1 has no tab.*CSV"),
    ('label,"text"\nham,"a"', "line 1 has no tab.*CSV"),
    ("ham\ta\r\nSpam\tb\r\n", "line 2: the label is 'Spam'; it must be one of ham, spam"),
    ("\ta", "line 1: the label is ''"),
    ("", "the text is empty"), (" \n\r\n\t\n", "the text is empty"), ("\ufeff", "the text is empty"),
])  # fmt: skip
def test_a_wrong_line_is_named(text, match):
    with pytest.raises(ValueError, match=match):
        parse_messages(text)


def test_duplicates_go():
    messages = [("ham", "Hi  there"), ("spam", "WIN"), ("ham", " hi THERE\u00a0"), ("spam", "win!"), ("ham", "win"),
                ("ham", "Straße"), ("ham", "STRASSE")]  # fmt: skip
    assert deduplicate(messages) == [messages[i] for i in (0, 1, 3, 5)]
    assert deduplicate([]) == []


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 80), st.integers(10, 80), st.integers(0, 5))
def test_split_is_stratified(n_ham, n_spam, seed):
    messages = [("ham", f"a{i}") for i in range(n_ham)] + [("spam", f"b{i}") for i in range(n_spam)]
    parts = split(messages, seed=seed)
    assert sorted(sum(parts, [])) == sorted(messages)  # every message once: none stands in two parts
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        counts = Counter(label for label, _ in part)
        assert abs(counts["ham"] - share * n_ham) <= 1 and abs(counts["spam"] - share * n_spam) <= 1
    assert split(messages, seed=seed) == parts and split(messages, seed=seed + 1) != parts


def test_split_shuffles():
    messages = [(LABELS[i >= 50], str(i)) for i in range(100)]
    first, second = split(messages, shares=(1, 1))
    assert first != sorted(first, key=messages.index) and len(first) == len(second) == 50
    switches = sum(a[0] != b[0] for a, b in zip(first, first[1:], strict=False))
    assert switches > 10  # the labels are mixed, too


@pytest.mark.parametrize(("messages", "match"), [
    ([("ham", str(i)) for i in range(50)], "0 messages of 'spam'"),
    ([("spam", str(i)) for i in range(50)], "0 messages of 'ham'"),
    ([("ham", str(i)) for i in range(50)] + [("spam", "x")], "1 messages of 'spam'"),
    ([], "0 messages of 'ham'"),
])  # fmt: skip
def test_a_class_that_is_missing_or_too_rare_is_named(messages, match):
    with pytest.raises(ValueError, match=match):
        split(messages)


def test_other_labels_can_be_split():
    messages = [(label, f"{label}{i}") for label in ("no", "perhaps", "yes") for i in range(10)]
    assert [len(part) for part in split(messages, labels=("no", "perhaps", "yes"))] == [21, 3, 6]


def test_balance_draws_as_many_of_each():
    messages = [(LABELS[i % 5 == 0], str(i)) for i in range(100)]
    kept = balance(messages)
    assert Counter(label for label, _ in kept) == {"ham": 20, "spam": 20}
    assert kept == sorted(set(kept), key=messages.index) and set(kept) <= set(messages)
    assert balance(messages) == kept != balance(messages, seed=1)
    assert balance(kept) == kept


# --- batches ---------------------------------------------------------------------------------------------------------


def test_dataset_and_collate(tokenizer):
    data = LabelledTexts([("spam", "the lamp room"), ("ham", ""), ("ham", "x" * 500)], tokenizer, 20)
    assert len(data) == 3 and data.labels.tolist() == [1, 0, 0]
    tokens, lengths, labels = collate([data[i] for i in range(3)])
    assert tokens.shape == (3, 20) and lengths.tolist()[1:] == [1, 20] and labels.tolist() == [1, 0, 0]
    assert tokenizer.decode(tokens[0, : lengths[0]].tolist()) == "the lamp room"
    assert tokens[0, lengths[0] :].sum() == tokens[1, 1:].sum() == 0
    short = collate([data[0], data[1]])[0]
    assert short.shape[1] == lengths[0] < 20  # as long as the longest of its batch, not of all


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["head", "last_block", "all"])
@pytest.mark.parametrize("tied", [True, False])
def test_only_what_should_learn_moves(tokenizer, what, tied):
    ours = make(tokenizer, replace(CONFIG, tie_weights=tied))
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    n = freeze_except(ours, what)
    train_classifier(ours, easy_messages(16), batch_size=16, lr=1e-2, weight_decay=0.0, progress=False)
    moved = {name for name, parameter in ours.named_parameters() if not torch.equal(parameter, before[name])}
    prefixes = {"head": ("head.",), "last_block": ("head.", "gpt.blocks.1.", "gpt.final_norm."), "all": ("",)}[what]
    expected = {name for name in before if name.startswith(prefixes)} - {"gpt.head.weight"}
    assert moved == expected
    learning = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert learning - {"gpt.head.weight"} == expected
    assert n == sum(before[name].numel() for name in learning)


def test_freezing_can_be_undone_and_a_wrong_name_changes_nothing(tokenizer):
    ours = make(tokenizer)
    assert freeze_except(ours, "head") == 2 * CONFIG.emb_dim
    with pytest.raises(ValueError, match="'last_layer' is not one of head, last_block, all"):
        freeze_except(ours, "last_layer")
    assert sum(p.requires_grad for p in ours.parameters()) == 1
    assert freeze_except(ours, "all") == sum(p.numel() for p in ours.parameters())
    assert all(p.requires_grad for p in ours.parameters())


def test_class_weights_make_labels_count_alike():
    labels = torch.tensor([0] * 90 + [1] * 10)
    weights = class_weights(labels, 2)
    assert weights.tolist() == pytest.approx([100 / 180, 5.0])
    assert 90 * weights[0] == pytest.approx(10 * weights[1].item()) and weights[labels].mean() == pytest.approx(1.0)
    from sklearn.utils import class_weight as oracle

    theirs = oracle.compute_class_weight("balanced", classes=labels.unique().numpy(), y=labels.numpy())
    assert weights.tolist() == pytest.approx(theirs.tolist())
    with pytest.raises(ValueError, match="label number 1 does not occur"):
        class_weights(torch.zeros(5, dtype=torch.long), 2)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.3, 4.0])])
def test_loss_is_cross_entropy_at_the_last_token(classifier, weight):
    tokens, lengths, labels = collate([LabelledTexts(easy_messages(7), classifier.tokenizer, 48)[i] for i in range(7)])
    ours = classification_loss(classifier, tokens, lengths, labels, weight)
    logits = torch.stack([classifier(row[None, :n])[0, -1] for row, n in zip(tokens, lengths, strict=True)])
    each = -logits.log_softmax(1)[torch.arange(7), labels]
    w = torch.ones(7) if weight is None else weight[labels]
    assert_close(ours, (w * each).mean())
    if weight is None:
        assert_close(ours, F.cross_entropy(logits, labels))


def test_a_message_counts_the_same_whatever_stands_in_its_batch(classifier):
    """So batches without spam do not give the ham back what its class weight took."""
    weight, items = torch.tensor([0.3, 4.0]), LabelledTexts(easy_messages(12), classifier.tokenizer, 48)
    by_label = {n: [items[i] for i in range(12) if items[i][1] == n][:4] for n in (0, 1)}
    alone = [classification_loss(classifier, *collate(by_label[n]), weight) for n in (0, 1)]
    together = classification_loss(classifier, *collate(by_label[0] + by_label[1]), weight)
    assert_close(together, (alone[0] + alone[1]) / 2)


OPTIONS = dict(epochs=6, lr=3e-3, warmup_steps=5, weight_decay=0.01, eval_every=20, progress=False)


def fine_tune(tokenizer, **options):
    classifier = make(tokenizer, replace(CONFIG, drop_rate=0.1), seed=5)
    torch.manual_seed(3)
    history = train_classifier(classifier, easy_messages(256), easy_messages(50, seed=1), **OPTIONS | options)
    return classifier, history


def test_an_easy_task_is_learned_and_learned_the_same_again(tokenizer):
    classifier, history = fine_tune(tokenizer)
    unseen = easy_messages(100, seed=9)
    assert classifier.predict([text for _, text in unseen])[0] == [label for label, _ in unseen]
    untrained = fine_tune(tokenizer, epochs=1, lr=0.0)[0].predict([text for _, text in unseen])[0]
    assert sum(a == b for a, (b, _) in zip(untrained, unseen, strict=True)) < 80
    assert history.steps_done == 6 * 16 and history.val_loss[-1] < 0.1 < history.train_loss[0]
    again, second = fine_tune(tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), again.parameters(), strict=True))
    assert second.val_loss == history.val_loss
    other, _ = fine_tune(tokenizer, seed=1)
    assert not torch.equal(classifier.head.weight, other.head.weight)


def test_the_validation_loss_is_the_plain_mean(tokenizer, monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")  # batches of another size must give the same mean
    weights = torch.tensor([1.0, 9.0])
    classifier, history = fine_tune(tokenizer, epochs=1, weights=weights)
    data = LabelledTexts(easy_messages(50, seed=1), tokenizer, 48)
    expected = mean_loss(classifier, [collate([data[i]]) for i in range(50)], classification_loss)
    assert history.val_loss[-1] == pytest.approx(expected, abs=1e-5)
    plain = fine_tune(tokenizer, epochs=1)[0]
    texts = [text for _, text in easy_messages(50, seed=1)]
    assert classifier.predict(texts)[1][:, 1].mean() > plain.predict(texts)[1][:, 1].mean()  # spam counts for more


def test_training_without_validation_or_without_messages(tokenizer):
    _, history = fine_tune(tokenizer, epochs=1)
    classifier = make(tokenizer)
    history = train_classifier(classifier, easy_messages(20), batch_size=8, progress=False)
    assert history.steps_done == 3 and history.val_loss == [None]
    with pytest.raises(ValueError, match="nothing to train"):
        train_classifier(classifier, [], easy_messages(20), progress=False)


@pytest.mark.parametrize("what", ["all", "last_block"])
def test_a_broken_run_goes_on_bit_for_bit(tokenizer, tmp_path, what):
    def run(stop_after=None, **options):
        classifier = make(tokenizer, seed=5)
        freeze_except(classifier, what)
        torch.manual_seed(3)
        if stop_after:
            hooks = []

            def count(*_):
                hooks.append(1)
                if len(hooks) > stop_after:
                    raise RuntimeError("power cut")

            classifier.head.register_forward_hook(count)
        history = train_classifier(classifier, easy_messages(100), **OPTIONS | {"epochs": 3} | options)
        return classifier, history

    unbroken, history = run()
    file = tmp_path / "c.safetensors"
    with pytest.raises(RuntimeError, match="power cut"):
        run(stop_after=11, checkpoint=file, eval_every=9)  # in the middle of the second pass
    resumed, second = run(checkpoint=file, eval_every=9, resume=True)
    assert second.steps_done == history.steps_done == 21
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


# --- what must not pass ----------------------------------------------------------------------------------------------


def test_one_text_is_no_list_of_texts(classifier):
    with pytest.raises(TypeError, match="a list is needed here, not one str: 'WIN a prize'"):
        classifier.predict("WIN a prize")
    labels, probabilities = classifier.predict(iter(TEXTS))
    assert labels == classifier.predict(TEXTS)[0] and len(probabilities) == len(TEXTS)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_no_size_label_nothing(classifier, batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        classifier.predict(TEXTS, batch_size=batch_size)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_damaged_weights_are_not_ham(tokenizer, number):
    broken = make(tokenizer).train()
    with torch.no_grad():
        broken.gpt.final_norm.bias[0] = number
    with pytest.raises(FloatingPointError, match="probabilities are NaN; its weights are damaged"):
        broken.predict(["hello", "WIN"])
    assert broken.training


@pytest.mark.parametrize("blanks", [" ", "\t \r", "\u3000"])
def test_a_million_blanks_are_a_text_like_any_other(classifier, tokenizer, blanks):
    long = blanks * 1_200_000
    for text in (long, long + "x", "x" + long + "x"):
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    assert classifier.predict([long + "x"])[0] == classifier.predict([blanks * 1000])[0]


def test_the_threshold_decides_is_kept_and_is_the_command_s(classifier, tokenizer, tmp_path):
    probabilities = classifier.predict(TEXTS)[1][:, -1]
    between = probabilities.sort().values[:2].mean().item()  # all but one are spam from here on
    model = SpamClassifier(classifier.gpt, tokenizer, threshold=between)
    model.head.weight.data.copy_(classifier.head.weight)
    expected = ["spam" if p >= between else "ham" for p in probabilities]
    assert model.predict(TEXTS)[0] == expected and {"ham", "spam"} == set(expected)
    model.save(tmp_path)
    assert SpamClassifier.load(tmp_path).threshold == between
    assert SpamClassifier.load(tmp_path).predict(TEXTS)[0] == expected


@pytest.mark.parametrize("kind", [torch.tensor, np.float32])
def test_a_threshold_from_a_curve_is_kept_too(classifier, tokenizer, tmp_path, kind):
    SpamClassifier(classifier.gpt, tokenizer, threshold=kind(0.25)).save(tmp_path)
    assert SpamClassifier.load(tmp_path).threshold == 0.25


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), None, True, "0.5"])
def test_a_threshold_that_is_no_probability(classifier, tokenizer, tmp_path, threshold):
    classifier.save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"threshold": threshold}))
    with pytest.raises(ValueError, match=r"config\.json: threshold is .*; it must be from 0 to 1"):
        SpamClassifier.load(tmp_path)
    if isinstance(threshold, float):
        with pytest.raises(ValueError, match="it must be between 0 and 1"):
            SpamClassifier(classifier.gpt, tokenizer, threshold=threshold)
