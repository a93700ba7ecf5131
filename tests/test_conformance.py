"""`python -m tests.conformance`: strangers' suites run on our code, on a copy, with a scorecard and an exit status."""

import argparse
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from shared import data
from shared.instructions import format_prompt
from shared.tokenizer import BPETokenizer
from tests import conformance
from tests.conformance import (
    Result,
    __main__,
    cs336,
    cs336_adapters,
    langchain,
    llama_cpp,
    llm_comply,
    openai_python,
    schemathesis,
)

ONE_OF_EACH = """
import pytest

def test_sum():
    assert 1 + 1 == 2

def test_difference():
    assert 2 - 1 == 3, "two less one"

def test_elsewhere():
    pytest.skip("needs a model")
"""


def checkout_with(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def toy(monkeypatch):
    """A suite "toy", run where it lies, in place of the real ones."""
    suite = SimpleNamespace(NAME="Toy", SOURCE="https://example.org/toy", FOLDER="toy", arguments=None)

    def run(checkout, suites, arguments):
        suite.arguments = arguments
        return conformance.run_pytest(checkout, ["test_toy.py"])

    suite.run = run
    monkeypatch.setattr(__main__, "SUITES", {"toy": suite})
    return suite


def test_no_folder_and_no_checkout(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["--suites", str(tmp_path / "none")])
    assert ended.value.code == 2 and "none is no folder" in capsys.readouterr().err
    assert __main__.main(["--suites", str(tmp_path)]) == 2, "nothing was run: that is no success"
    said = capsys.readouterr().out
    assert "not run" in said and f"git clone {cs336.SOURCE} {tmp_path / cs336.FOLDER}" in said


def test_scorecard_and_exit_status(toy, tmp_path, capsys):
    checkout = checkout_with(tmp_path / "toy", {"test_toy.py": ONE_OF_EACH})
    assert __main__.main(["--suites", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[2].split()[:6] == ["Toy", "no", "git", "1", "1", "1"]
    assert "test_toy.py::test_difference\n      AssertionError: two less one" in said
    assert "test_toy.py::test_elsewhere\n      needs a model" in said and "test_sum" not in said
    checkout_with(checkout, {"test_toy.py": ONE_OF_EACH.replace("== 3", "== 1")})
    assert __main__.main(["--suites", str(tmp_path)]) == 0
    checkout_with(checkout, {"test_toy.py": "import pytest\n\ndef test_a():\n    pytest.skip('all of it')\n"})
    assert __main__.main(["--suites", str(tmp_path)]) == 1, "a suite that is skipped as a whole proves nothing"


def test_a_run_that_breaks_off_is_a_failure(toy, tmp_path, capsys):
    for text in ("import no_such_package\n", "import os\nos._exit(3)\n", "x = 1\n"):
        checkout_with(tmp_path / "toy", {"test_toy.py": text})
        assert __main__.main(["--suites", str(tmp_path)]) == 1, text
        assert "failed:" in capsys.readouterr().out, text


def test_a_suite_may_have_arguments_of_its_own(toy, tmp_path):
    checkout_with(tmp_path / "toy", {"test_toy.py": "def test_a():\n    pass\n"})
    toy.add_arguments = lambda parser: parser.add_argument("--with-key")
    assert __main__.main(["--suites", str(tmp_path), "--with-key", "http://127.0.0.1:1", "--only", "toy"]) == 0
    assert toy.arguments.with_key == "http://127.0.0.1:1"


# The suites of the chat service: a checkout in their form, with a test of our own that asks the service.

OF_OPENAI = """
import os
import requests

def test_method_{0}():
    import openai_of_the_checkout
    assert requests.post(os.environ["TEST_API_BASE_URL"] + "/completions", json={{}}).status_code == 400

def test_method_delete():
    raise OSError
"""
OF_LLAMA = """
import os
import requests

def test_asks():
    assert "DEBUG_EXTERNAL" in os.environ
    got = requests.get(f"http://127.0.0.1:{os.environ['PORT']}/v1/models")
    assert got.status_code == STATUS, "not so"
"""


@pytest.fixture(scope="module")
def url():
    from tests.chat_server import Scripted, chat, running, stand_in

    tokenizer = stand_in()[1]
    with running(chat.create_app([chat.serve("one", Scripted(tokenizer, "Hello."), tokenizer)])) as address:
        yield address


def test_what_a_suite_lacks_is_said(tmp_path, capsys, url):
    assert __main__.main(["--suites", str(tmp_path), "--only", "llm-comply"]) == 2
    assert "llm-comply: not run, it needs the URL" in capsys.readouterr().out
    assert __main__.main(["--suites", str(tmp_path), "--only", "openai-python", url]) == 2
    assert f"git clone {openai_python.SOURCE}" in capsys.readouterr().out
    packages = SimpleNamespace(NAME="Toy", SOURCE="", FOLDER=None, PACKAGES=("pytest", "no-such-package"))
    reason = __main__.why_not(packages, SimpleNamespace(suites=tmp_path, python=sys.executable, url=None))
    assert reason == f"{sys.executable} has no no-such-package; {sys.executable} -m pip install no-such-package"
    for arguments, says in ((["http://127.0.0.1:9"], "no service of this kind"), ([url + "/health"], "no service"),
                            (["--python", "no-such-python", url], "no-such-python is no program")):  # fmt: skip
        with pytest.raises(SystemExit):
            __main__.main(["--suites", str(tmp_path), *arguments])
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "names", "chat"), [
    ([{"id": "a", "is_chat": False}, {"id": "b", "is_chat": True}], ["a", "b"], "b"),
    ([{"id": "a"}, {"id": "b"}], ["a", "b"], "a"),  # another program's server, which does not say
])
def test_the_model_that_chats_is_asked_for(monkeypatch, rows, names, chat):
    told = SimpleNamespace(raise_for_status=lambda: None, json=lambda: {"data": rows})
    monkeypatch.setattr(__main__.requests, "get", lambda address, timeout: told)
    assert __main__.models_at("http://x") == (names, chat)


def test_version_of_a_package():
    found = conformance.versions(sys.executable, ["pytest", "no-such-package"])
    assert found == {"pytest": pytest.__version__, "no-such-package": None}
    suite = SimpleNamespace(FOLDER=None, PACKAGES=("pytest",))
    assert __main__.version_of(suite, SimpleNamespace(python=sys.executable)) == pytest.__version__
    assert conformance.versions("no-such-python", ["pytest"]) == {"pytest": None}


@pytest.fixture
def no_plugins(monkeypatch):
    """Their Python has the plugins that they need; ours has others, which take seconds to load."""
    for suite in (openai_python, llama_cpp):
        monkeypatch.setattr(suite, "their_environment", lambda **settings: conformance.their_environment(
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", **settings))  # fmt: skip


def test_openai_python_runs_with_its_own_code_and_changes_nothing(tmp_path, url, no_plugins, monkeypatch, capsys):
    tests = {"test_models": "list", "test_completions": "create", "chat/test_completions": "create_overload"}
    files = {f"tests/api_resources/{name}.py": OF_OPENAI.format(method) for name, method in tests.items()}
    files |= {"src/openai_of_the_checkout.py": "", "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-n auto"\n'}
    files |= {f"tests/{name}__init__.py": "" for name in ("", "api_resources/", "api_resources/chat/")}
    checkout = checkout_with(tmp_path / "openai-python", files)
    monkeypatch.setattr(openai_python, "PACKAGES", ())
    before = contents(checkout)
    assert __main__.main(["--suites", str(tmp_path), "--only", "openai-python", f"{url}/v1/"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:6] == ["openai-python", "no", "git", "3", "0", "0"]
    assert contents(checkout) == before
    (checkout / "tests/api_resources/test_models.py").unlink()
    (result,) = openai_python.run(checkout, tmp_path, None)
    assert result.outcome == "failed" and "has no test_models.py" in result.reason


def test_llama_cpp_asks_two_servers(tmp_path, url, no_plugins):
    files = {f"tools/server/tests/unit/test_{name}.py": OF_LLAMA.replace("STATUS", status)
             for name, status in (("chat_completion", "200"), ("security", "401"))}  # fmt: skip
    checkout = checkout_with(tmp_path / "llama.cpp", files)
    arguments = SimpleNamespace(url=url, with_key=None, python=sys.executable)
    passed, skipped = llama_cpp.run(checkout, tmp_path, arguments)
    assert passed == Result("unit/test_chat_completion.py::test_asks", "passed")
    assert skipped.outcome == "skipped" and f"--api-key {llama_cpp.KEY}" in skipped.reason
    arguments.with_key = url  # which asks for no key: their test must notice
    _, failed = llama_cpp.run(checkout, tmp_path, arguments)
    assert failed.outcome == "failed" and "not so" in failed.reason


def test_llm_comply_tells_each_feature(tmp_path, monkeypatch):
    told = [{"id": "chat-basic-response", "status": "passed"}, {"id": "chat-multi-turn", "status": "failed",
            "errors": ["no id"]}]  # fmt: skip
    asked = "import sys; assert {'none', 'http://x/v1', 'chats'} < {*sys.argv}"
    start = f"{asked}; print({json.dumps({'results': told})!r})"
    arguments = SimpleNamespace(url="http://x", chat_model="chats", python=sys.executable)
    monkeypatch.setattr(llm_comply, "START", start)
    results = {result.test: result for result in llm_comply.run(None, tmp_path, arguments)}
    assert len(results) == 6 and results["chat-basic-response"].outcome == "passed"
    assert results["chat-multi-turn"] == Result("chat-multi-turn", "failed", "['no id']")
    assert "was not run" in results["chat-error-handling"].reason
    monkeypatch.setattr(llm_comply, "START", "raise SystemExit('no such option')")
    (result,) = llm_comply.run(None, tmp_path, arguments)
    assert result.outcome == "failed" and "no such option" in result.reason


def test_schemathesis_results_are_read_from_its_report(tmp_path, monkeypatch):
    start = """if True:
        import sys
        report = '<testsuites><testsuite><testcase name="GET /a"/><testcase name="POST /b"><failure message="ST201"/>'
        open(sys.argv[-1], "w").write(report + "</testcase></testsuite></testsuites>")
        sys.exit("http://x/openapi.json" in sys.argv)
    """
    monkeypatch.setattr(schemathesis, "START", start)
    results = schemathesis.run(None, tmp_path, SimpleNamespace(url="http://x", python=sys.executable))
    assert results == [Result("GET /a", "passed"), Result("POST /b", "failed", "ST201")]
    monkeypatch.setattr(schemathesis, "START", start.replace("</testcase></testsuite></testsuites>", ""))
    (broken_off,) = schemathesis.run(None, tmp_path, SimpleNamespace(url="http://x", python=sys.executable))
    assert broken_off.outcome == "failed" and "ended with 1" in broken_off.reason


def test_langchain_is_pointed_at_the_service(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(langchain, "run_pytest", lambda folder, args, python, env: asked.update(args=args, env=env))
    langchain.run(None, tmp_path, SimpleNamespace(url="http://x", models=["a", "b", "c"], python="py"))
    assert asked["args"][-1] == "test_service.py" and asked["env"]["SERVICE_MODELS"] == '["a", "c"]'
    assert asked["env"]["SERVICE_URL"] == "http://x/v1" and "PYTHONPATH" not in asked["env"]


def test_commit_of_a_checkout(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    checkout_with(tmp_path, {"file": "one", "inner/file": "one"})
    assert conformance.commit_of(tmp_path) == "no git"
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout[:12]
    assert conformance.commit_of(tmp_path) == commit and len(commit) == 12
    assert conformance.commit_of(tmp_path / "inner") == "no git", "that commit is the one of the folder around it"
    (tmp_path / "file").write_text("two")
    assert conformance.commit_of(tmp_path) == commit + "+"


# A checkout in the form of the assignment's, with tests of our own: who answers, and what is left out.
ASSIGNMENT = {
    "tests/__init__.py": "",
    "tests/conftest.py": f"MODELS, TOLERANCE = '{cs336.MODELS}', {cs336.TOLERANCE}\n",
    "tests/adapters.py": "def run_masked_mean(tensor, mask, dim=None):\n    raise NotImplementedError\n",
    "tests/test_dpo.py": "def test_per_instance_dpo_loss():\n    raise OSError('no weights')\n",
    "tests/test_grpo.py": """
import torch
from .adapters import run_masked_mean
from .conftest import MODELS, TOLERANCE

def test_ours():
    assert run_masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])) == 1.5

def test_models():
    assert MODELS == {suites!r} and TOLERANCE == 0.001
""",
    "tests/test_sft.py": "def test_tokenize_prompt_and_output():\n    raise OSError\n",
}


def test_cs336_runs_on_a_copy_with_our_adapters(tmp_path):
    files = ASSIGNMENT | {"tests/test_grpo.py": ASSIGNMENT["tests/test_grpo.py"].format(suites=str(tmp_path))}
    checkout = checkout_with(tmp_path / cs336.FOLDER, files)
    before = contents(checkout)
    results = {r.test: r for r in cs336.run(checkout, tmp_path, argparse.Namespace())}
    assert contents(checkout) == before, "their checkout stays as it is"
    assert not any("no longer" in result.reason for result in results.values())
    outcomes = {test.split("::")[-1]: result.outcome for test, result in results.items()}
    assert outcomes == {
        "test_ours": "passed", "test_models": "passed", "test_per_instance_dpo_loss": "skipped",
        "test_tokenize_prompt_and_output": "skipped", "test_get_response_log_probs": "skipped",
        "test_get_response_log_probs (left out)": "failed",  # this checkout has no such test: the list is out of date
    }  # fmt: skip
    reason = results["tests/test_dpo.py::test_per_instance_dpo_loss"].reason
    assert "no weights in tests/fixtures/tiny-gpt2 and" in reason


def test_cs336_of_an_empty_folder(tmp_path):
    (result,) = cs336.run(tmp_path, tmp_path, None)
    assert result.outcome == "failed" and "is it whole?" in result.reason


def test_cs336_says_when_its_replacements_find_nothing(tmp_path):
    file = tmp_path / "conftest.py"
    file.write_text(f"atol = {cs336.TOLERANCE}\n")
    lost = cs336.replaced(file, {cs336.MODELS: "/here", cs336.TOLERANCE: cs336.OURS})
    assert file.read_text() == "atol = 1e-3\n"
    assert [result.outcome for result in lost] == ["failed"] and cs336.MODELS in lost[0].reason


def test_cs336_leaves_out_only_what_lacks_its_files(tmp_path):
    checkout, suites = tmp_path / "checkout", tmp_path / "suites"
    assert len(cs336.missing(checkout, suites, has_gpt2=True)) == 3
    checkout_with(suites / cs336.QWEN, {"tokenizer.json": "{}"})
    checkout_with(checkout, {f"{place}/model.safetensors": "" for place in cs336.TINY})
    assert [*cs336.missing(checkout, suites, has_gpt2=True)] == ["tests/test_sft.py::test_get_response_log_probs"]
    assert len(cs336.missing(checkout, suites, has_gpt2=False)) == 2
    checkout_with(suites / cs336.QWEN, {"model.safetensors": ""})
    assert cs336.missing(checkout, suites, has_gpt2=True) == {}


def test_dpo_adapter_equals_the_loss_of_whole_texts(tmp_path):
    """The prompt's own log-probability cancels out, so transformers' loss of the whole texts must lead to the same."""
    transformers = pytest.importorskip("transformers")
    BPETokenizer().load(data.places.SAMPLES / "bpe").save(tmp_path)
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = transformers.GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), **ends)
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2,
                                         initializer_range=0.2, bos_token_id=0, eos_token_id=None)  # fmt: skip
        models.append(transformers.GPT2LMHeadModel(config).eval())
    chosen, rejected = "Brown foxes jump.", "Dogs."
    ours = cs336_adapters.run_compute_per_instance_dpo_loss(*models, tokenizer, 0.5, "What jumps?", chosen, rejected)

    def log_prob(model, answer):
        text = format_prompt({"instruction": "What jumps?"}) + answer + "<|endoftext|>"
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        return -model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)

    gains = [log_prob(model, chosen) - log_prob(model, rejected) for model in models]
    expected = -F.logsigmoid(torch.tensor(0.5 * (gains[0] - gains[1])))
    assert abs(gains[0] - gains[1]) > 0.1
    torch.testing.assert_close(ours.detach(), expected, rtol=1e-4, atol=1e-4)


def test_is_good():
    passed, failed, skipped = (Result("t", outcome) for outcome in __main__.OUTCOMES)
    assert __main__.is_good([passed, skipped]) and not __main__.is_good([passed, failed])
    assert not __main__.is_good([skipped]) and not __main__.is_good([])
