"""The script of preference tuning: its rules, its saved table, and how it goes on where it stopped."""

import importlib.util
import json

import pytest
import torch

from shared.checkpoints import COURSE_BASE, load_gguf, load_model
from shared.gpt import GPTConfig, GPTModel
from shared.llama import LlamaModel
from tools.notebooks import ROOT

SCRIPT = ROOT / "05_instruction_finetune" / "preference_smollm2.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("preference_smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rule_of_manners(script):
    assert script.manners("I'd be happy to help! It is Oslo.") == 1
    assert script.manners("The capital is Oslo.") == script.manners("") == 0
    assert script.manners("It is Oslo, obviously. Glad to help!") == -1  # rude outweighs polite


def test_loops_are_seen(script):
    assert script.loops("I am sorry sorry sorry sorry sorry.") and script.loops("as a type of as a type of it")
    assert not script.loops("A synonym of 'fast' is 'quick'.") and not script.loops("")


def test_the_parts_share_no_prompt(script):
    training, held_out, _ = script.parts()
    prompts = [{(pair["instruction"], pair["input"]) for pair in part} for part in (training, held_out)]
    assert not prompts[0] & prompts[1] and len(prompts[1]) == len(held_out) >= 20


def test_only_the_last_blocks_learn(script):
    model = load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf")[0]
    assert isinstance(model, LlamaModel)
    script.freeze_all_but_last(model, 1)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning and all(name.startswith(f"blocks.{len(model.blocks) - 1}.") for name in learning)


def test_bits_per_byte_by_hand(script):
    model, tokenizer = tiny_gpt()
    entries = [{"instruction": "Say it.", "input": ""}, {"instruction": "Say it.", "input": "la"}]
    answers = ["Blue äöü.", ""]
    found = script.bits_per_byte(model, tokenizer, entries, answers, script.course_encode)
    for one, entry, answer in zip(found.tolist(), entries, answers, strict=True):
        prompt, reply = script.course_encode(entry | {"output": answer}, tokenizer)
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + reply]))[0].log_softmax(dim=-1)
        nats = -sum(log_probs[len(prompt) - 1 + k, token].item() for k, token in enumerate(reply))
        assert one == pytest.approx(nats / torch.log(torch.tensor(2.0)).item() / max(1, len(answer.encode())), rel=1e-3)


def test_the_saved_table_is_whole(script):
    table = json.loads(script.OUT.read_text(encoding="utf-8"))
    assert table["data"]["trial"] is None and not table["data"]["bundled_sample"]
    rows = {(row["model"], row["arm"], row["seed"]): row for row in table["runs"]}
    assert len(rows) == len(table["runs"])
    for model, arms in script.ARMS.items():
        wanted = {(model, None, None)} | {(model, arm, seed) for arm in arms for seed in range(3)}
        assert wanted <= set(rows), sorted(map(str, wanted - set(rows)))
        for key in wanted:
            row = rows[key]
            n = script.PROMPTS[model]
            lists = [row[name] for name in ("margins", "chosen", "rejected", "reward", "bits", "manners", "words",
                                            "loops")]  # fmt: skip
            assert {len(values) for values in lists} == {n} and len(row["ten"]) == 10
            assert row["settings"] == (script.COMMON | arms[key[1]] if key[1] else {})
            assert row["date"] and row["machine"] and row["pairs"] == script.PAIRS[model]
        before = rows[model, None, None]
        assert set(before["margins"]) == set(before["chosen"]) == {0}


def tiny_gpt():
    torch.manual_seed(0)
    tokenizer = load_model(COURSE_BASE)[1]
    config = GPTConfig(vocab_size=tokenizer.n_vocab, context_length=160, emb_dim=16, n_heads=2, n_layers=1)
    return GPTModel(config), tokenizer


@pytest.mark.parametrize("model", ["course_base", "smollm2"])
def test_the_script_goes_on_where_it_stopped(script, model, tmp_path, capsys, monkeypatch):
    small = load_gguf(ROOT / "shared/data/samples/smollm2-tiny.gguf")
    monkeypatch.setenv("LLM_DTYPE", "float32")
    monkeypatch.setattr(script, "load_base", lambda path=None: small if path == "smollm2" else tiny_gpt())
    monkeypatch.setattr(script, "NEW_TOKENS", 3)
    monkeypatch.setattr(script, "BLOCKS", 1)
    out = tmp_path / "table.json"
    asked = ["--model", model, "--seeds", "1", "--pairs", "12", "--out", str(out)]
    arms = [*script.ARMS[model]]
    assert script.main(asked) == 0
    whole = json.loads(out.read_text(encoding="utf-8"))
    assert [row["arm"] for row in whole["runs"]] == [None, *arms]
    capsys.readouterr()
    out.write_text(json.dumps(whole | {"runs": whole["runs"][:2]}), encoding="utf-8")
    assert script.main(asked) == 0
    again = json.loads(out.read_text(encoding="utf-8"))
    assert f"{len(arms) - 1} of {len(arms) + 1} runs are left" in capsys.readouterr().out
    plain = [[{key: value for key, value in row.items() if "seconds" not in key} for row in table["runs"]]
             for table in (whole, again)]  # fmt: skip
    assert plain[0] == plain[1]
    assert script.main(asked) == 0 and "is whole" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        script.main([*asked[:4], "--pairs", "11", "--out", str(out)])  # other conditions
    assert "name another file with --out" in capsys.readouterr().err
    monkeypatch.setitem(script.ARMS[model], arms[0], {"lr": 9e-9})
    with pytest.raises(SystemExit, match="2"):
        script.main(asked)
    assert "with other settings" in capsys.readouterr().err
    assert json.loads(out.read_text(encoding="utf-8")) == again


@pytest.mark.parametrize(("extra", "said"), [(["--seeds", "0"], "--seeds is 0"), (["--pairs", "0"], "--pairs 0"),
                                             (["--only", "tiny"], "the arms of course_base are small steps")])
def test_arguments_that_make_no_sense(script, extra, said, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main([*extra, "--out", str(tmp_path / "table.json")])
    assert said in capsys.readouterr().err
