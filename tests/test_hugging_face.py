"""Lesson 5.7: our training against transformers' Trainer, trl's SFTTrainer and peft, with both architectures.

The oracles are those libraries; every equality is taken in float32, from equal starts, without dropout.
"""

import os
import sys
import types
from functools import partial

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from torch.utils.data import DataLoader, SequentialSampler

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")

from shared.checkpoints import COURSE_BASE, load_gguf, load_model, save_model
from shared.conversation_files import read_conversations
from shared.conversations import CHATML, COURSE, ConversationData, encode_conversation, jinja
from shared.generation import generate
from shared.gpt import GPTConfig, GPTModel
from shared.instructions import answer_loss, collate_instructions
from shared.lora import adapters_of, apply_lora, published_layer
from shared.loss import IGNORE
from shared.training import train
from tools import notebooks

SAMPLES = notebooks.ROOT / "shared/data/samples"
LESSON = notebooks.ROOT / "05_instruction_finetune/07_hugging_face.ipynb"
CHATS = sorted(read_conversations(SAMPLES / "help_desk.jsonl"), key=lambda chat: len(str(chat)))[:20]
KINDS = {"gpt": COURSE, "llama": CHATML}


@pytest.fixture(autouse=True)
def plain_numbers(monkeypatch):
    monkeypatch.setenv("LLM_DTYPE", "float32")
    monkeypatch.setenv("LLM_DEVICE", "cpu")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


class Case:
    """One architecture: a small random model, its tokenizer, its folder, and rows of conversations."""

    def __init__(self, kind, folder):
        torch.manual_seed(7)
        self.template, self.folder = KINDS[kind], folder
        if kind == "gpt":
            self.tokenizer = load_model(COURSE_BASE)[1]
            self.model = GPTModel(GPTConfig(self.tokenizer.n_vocab, 256, emb_dim=32, n_heads=4, n_layers=2)).eval()
        else:
            self.model, self.tokenizer = load_gguf(SAMPLES / "smollm2-tiny.gguf")
        self.end = self.tokenizer.encode_single_token(self.template.end)
        save_model(self.model, self.tokenizer, folder, chat_template=jinja(self.template, generation=True))
        self.data = ConversationData([chat[:3] for chat in CHATS], self.tokenizer, 256, self.template)
        assert len(self.data) == len(CHATS) and len({len(ids) for ids, _ in self.data}) > 5

    def ours(self):
        return load_model(self.folder)[0]

    def theirs(self):
        import transformers

        return transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def batch(self, rows):
        """Rows as transformers wants them; the padding is the end token, on purpose."""
        ids, padded = [ids for ids, _ in rows], partial(pad_sequence, batch_first=True)
        labels = [ids.masked_fill(~counts, IGNORE) for ids, counts in rows]
        return {"input_ids": padded(ids, padding_value=self.end), "labels": padded(labels, padding_value=IGNORE),
                "attention_mask": padded([torch.ones_like(one) for one in ids])}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def ordered(trainer_class):
    """A Trainer that reads its rows in their order and notes the losses."""

    class Ordered(trainer_class):
        def _get_train_sampler(self, *arguments):
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments, **settings):
            loss = super().training_step(*arguments, **settings)
            self.__dict__.setdefault("losses", []).append(loss.item())
            return loss

    return Ordered


SAME = dict(per_device_train_batch_size=2, num_train_epochs=1, learning_rate=1e-3, lr_scheduler_type="constant",
            adam_beta2=0.95, weight_decay=0.1, max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True)  # fmt: skip


def our_losses(model, data, batch_size=2, lr=1e-3, **settings):
    loader = DataLoader(data, batch_size=batch_size, collate_fn=collate_instructions)
    settings = dict(lr=lr, min_lr=lr, clip=None, weight_decay=0.1) | settings
    return train(model, loader, eval_every=1, loss_fn=answer_loss, progress=False, **settings).train_loss


def their_losses(case, folder, model=None, **settings):
    import transformers

    arguments = transformers.TrainingArguments(str(folder), **SAME | settings)
    trainer = ordered(transformers.Trainer)(model or case.theirs(), arguments, case.batch, list(case.data))
    trainer.train()
    n = arguments.gradient_accumulation_steps
    return [sum(trainer.losses[i : i + n]) for i in range(0, len(trainer.losses), n)]


# --- equal losses from equal starts


@pytest.mark.parametrize(("ours", "theirs"), [
    ({}, {}),
    ({"clip": 0.5}, {"max_grad_norm": 0.5}),
    ({"batch_size": 1, "accumulate": 2}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}),
    ({"weight_decay": 0.0}, {"weight_decay": 0.0}),
    ({"min_lr": 0.0}, {"lr_scheduler_type": "cosine"}),
], ids=["plain", "clipped", "accumulated", "no decay", "cosine"])  # fmt: skip
def test_ten_losses_of_the_trainer_are_ours(case, tmp_path, ours, theirs):
    found, wanted = our_losses(case.ours(), case.data, **ours), their_losses(case, tmp_path, **theirs)
    assert len(found) == 10 and found[0] - min(found) > 0.02  # it learned something
    assert found == pytest.approx(wanted, rel=0, abs=1e-5)


@pytest.mark.parametrize("other", [{"adam_beta2": 0.999}, {"lr_scheduler_type": "linear"}, {"learning_rate": 0.97e-3},
                                   {"max_grad_norm": 0.05}], ids=str)  # fmt: skip
def test_the_bound_sees_another_setting(case, tmp_path, other):
    found, theirs = our_losses(case.ours(), case.data), their_losses(case, tmp_path, **other)
    assert max(abs(a - b) for a, b in zip(found, theirs, strict=True)) > 1e-5


def test_ten_losses_of_trl_are_ours(case, tmp_path):
    import datasets
    import transformers
    import trl

    settings = trl.SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=256, bf16=False,
                             gradient_checkpointing=False, **SAME)  # fmt: skip
    rows = datasets.Dataset.from_list([{"messages": chat[:3]} for chat in CHATS])
    encoding = transformers.AutoTokenizer.from_pretrained(case.folder)
    trainer = ordered(trl.SFTTrainer)(case.theirs(), settings, train_dataset=rows, processing_class=encoding)
    for row, (ids, counts) in zip(trainer.train_dataset, case.data, strict=True):
        assert row["input_ids"] == ids.tolist()
        labels = trainer.data_collator([row])["labels"][0]
        assert labels.tolist() == ids.masked_fill(~counts, IGNORE).tolist()
    trainer.train()
    assert trainer.losses == pytest.approx(our_losses(case.ours(), case.data), rel=0, abs=1e-5)


def test_ten_losses_of_peft_in_the_trainer_are_ours(case, tmp_path):
    import peft

    ours = apply_lora(case.ours(), 4, 8)
    targets = sorted({published_layer(ours, name) for name in adapters_of(ours)})
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM",
                               fan_in_fan_out=isinstance(ours, GPTModel))  # fmt: skip
    theirs = peft.get_peft_model(case.theirs(), settings)
    for name, adapter in adapters_of(ours).items():
        layer = theirs.get_submodule(f"base_model.model.{published_layer(ours, name)}")
        layer.lora_A["default"].weight.data.copy_(adapter.A)
    found = our_losses(ours, case.data)
    assert found[0] - min(found) > 0.02
    assert found == pytest.approx(their_losses(case, tmp_path, theirs), rel=0, abs=1e-5)


# --- one loss, one text, one folder


def test_one_loss_and_its_count_are_theirs(case):
    rows = [case.data[i] for i in range(5)]
    model = case.theirs()
    with torch.no_grad():
        ours = answer_loss(case.ours(), *collate_instructions(rows))
        assert_close(model(**case.batch(rows)).loss, ours, rtol=0, atol=1e-5)
        parts = [case.batch(rows[:1]), case.batch(rows[1:])]
        n = (case.batch(rows)["labels"][:, 1:] != IGNORE).sum()
        assert_close(sum(model(**part, num_items_in_batch=n).loss for part in parts), ours, rtol=0, atol=1e-5)


def test_greedy_texts_are_theirs(case):
    prompts = [encode_conversation(chat[:1], case.tokenizer, case.template, prompt=True)[0] for chat in CHATS[:4]]
    longest = max(map(len, prompts))
    assert len({len(ids) for ids in prompts}) > 1
    rows = torch.tensor([[case.end] * (longest - len(ids)) + ids for ids in prompts])
    seen = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    ours = generate(case.ours(), prompts, 12, eos_id=case.end)
    theirs = case.theirs().generate(input_ids=rows, attention_mask=seen, max_new_tokens=12, do_sample=False,
                                    eos_token_id=case.end, pad_token_id=case.end)  # fmt: skip
    assert ours[:, longest:].tolist() == theirs[:, longest:].tolist()


def test_a_model_that_the_trainer_saved_is_read_by_load_model(case, tmp_path):
    import transformers

    arguments = transformers.TrainingArguments(str(tmp_path / "runs"), **SAME | {"max_steps": 2})
    encoding = transformers.AutoTokenizer.from_pretrained(case.folder)
    trainer = ordered(transformers.Trainer)(case.theirs(), arguments, case.batch, list(case.data),
                                            processing_class=encoding)  # fmt: skip
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    model, tokenizer = load_model(tmp_path / "saved")
    ids = torch.tensor([encode_conversation(CHATS[0], tokenizer, case.template)[0]])
    assert ids[0].tolist() == encode_conversation(CHATS[0], case.tokenizer, case.template)[0]
    with torch.no_grad():
        assert_close(model(ids), trainer.model.eval()(ids).logits, rtol=1e-4, atol=1e-4)
        assert (model(ids) - case.ours()(ids)).abs().max() > 1e-3  # it was trained


# --- the lesson


def cell_with(text):
    return next(cell.source for _, cell in notebooks.code_cells(notebooks.read(LESSON)) if text in cell.source)


def test_the_lesson_goes_offline_before_it_imports_the_libraries():
    source = cell_with("import transformers\n")
    assert source.index('HF_HUB_OFFLINE="1"') < min(source.index(f"import {name}") for name in
                                                    ("transformers", "peft", "trl", "datasets", "torch"))  # fmt: skip
    code = "\n".join(cell.source for _, cell in notebooks.code_cells(notebooks.read(LESSON)))
    assert code.count("report_to=[]") == 3  # all arguments, and the two that are only printed


@pytest.mark.parametrize("colab", [False, True])
def test_only_colab_installs_trl_and_never_its_dependencies(colab, monkeypatch):
    called = []
    played = types.SimpleNamespace(run=lambda command, check: called.append(command))
    modules = {**sys.modules, "google.colab": types.ModuleType("colab")} if colab else dict(sys.modules)
    played_sys = types.SimpleNamespace(modules=modules, executable="python")
    exec(cell_with("In Colab only"), {"sys": played_sys, "subprocess": played})
    if not colab:
        assert not called
        return
    install, remove = called
    assert "--no-deps" in install and install[-1].startswith("trl>=") and remove[-1] == "torchao"
