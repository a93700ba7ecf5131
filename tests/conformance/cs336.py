"""Stanford's CS336, assignment 5 (alignment): its tests of DPO, GRPO and supervised fine-tuning.

The assignment's tests call `tests/adapters.py`, which a student fills in. In the copy that is made for the run,
`cs336_adapters.py` stands in its place. Their other files are not run: `test_data.py` wants a way of packing that this
course has not, and `test_metrics.py` rules that read an answer's letter or number out of free text.
"""

import json
import shutil
import tempfile
from pathlib import Path

from shared import data
from shared.tokenizer import END_OF_TEXT
from tests.conformance import Result, run_pytest

NAME = "CS336 assignment 5"
SOURCE = "https://github.com/stanford-cs336/assignment5-alignment"
FOLDER = "assignment5-alignment"
FILES = ("tests/test_dpo.py", "tests/test_grpo.py", "tests/test_sft.py")

MODELS = "/data/a5-alignment/models"  # where their conftest.py looks for models, on Stanford's cluster
TOLERANCE, OURS = "1e-2", "1e-3"  # of their snapshots: at theirs, a GRPO step of loss and gradient 0 passes
QWEN = "Qwen2.5-Math-1.5B"
TINY = ("tests/fixtures/tiny-gpt2", "tests/fixtures/tiny-gpt2-ref")


def run(checkout, suites, arguments):
    """The results of `FILES`, with our adapters, a closer tolerance, and the models in `suites` for those elsewhere."""
    if not (checkout / "tests" / "conftest.py").is_file():
        return [Result("the checkout", "failed", f"{checkout} has no tests/conftest.py: is it whole?")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(checkout / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__).with_name("cs336_adapters.py"), work / "tests" / "adapters.py")
        results = replaced(work / "tests" / "conftest.py", {MODELS: str(suites.resolve()), TOLERANCE: OURS})
        left_out = missing(checkout, suites, has_gpt2=put_gpt2_tokenizer(work / "gpt2"))
        results += [Result(test, "skipped", reason) for test, reason in left_out.items()]
        results += gone(checkout, left_out)
        deselected = [f"--deselect={test}" for test in left_out]
        results += run_pytest(work, [*deselected, *FILES])
    return sorted(results, key=lambda result: result.test)


def replaced(file, texts):
    """Replace `texts` in a file, and return a failure for each that is not there."""
    content = file.read_text(encoding="utf-8")
    lost = [text for text in texts if text not in content]
    for text, new in texts.items():
        content = content.replace(text, new)
    file.write_text(content, encoding="utf-8")
    return [Result(f"the tests' {file.name}", "failed", f"{text!r} is no longer in it: see cs336.py") for text in lost]


def missing(checkout, suites, has_gpt2):
    """The tests that cannot run because files are missing, each with its reason."""
    tests, qwen = {}, suites / QWEN
    no_weights = [place for place in TINY if not (checkout / place / "model.safetensors").is_file()]
    if no_weights:
        tests["tests/test_dpo.py::test_per_instance_dpo_loss"] = f"no weights in {' and '.join(no_weights)}"
    elif not has_gpt2:
        tests["tests/test_dpo.py::test_per_instance_dpo_loss"] = "needs the two files of GPT-2's tokenizer"
    if not (qwen / "tokenizer.json").is_file():
        tests["tests/test_sft.py::test_tokenize_prompt_and_output"] = f"needs the tokenizer of {QWEN}, in {qwen}"
    if not [*qwen.glob("*.safetensors")]:
        tests["tests/test_sft.py::test_get_response_log_probs"] = f"needs the model {QWEN} (3 GB), in {qwen}"
    return tests


def gone(checkout, tests):
    """A failure for each of `tests` that this checkout does not have: the list above is then out of date."""
    found = []
    for test in tests:
        file, _, name = test.partition("::")
        file = checkout / file
        if not file.is_file() or f"def {name}(" not in file.read_text(encoding="utf-8"):
            found.append(Result(f"{test} (left out)", "failed", "this commit has no such test: mend the list"))
    return found


def put_gpt2_tokenizer(folder):
    """Write GPT-2's tokenizer into `folder`, where transformers finds it by its name, without the Hub. True if done."""
    files = {"merges.txt": data.fetch("gpt2_vocab"), "vocab.json": data.fetch("gpt2_encoder")}
    if any(data.places.is_sample(file) for file in files.values()):
        return False  # they cannot be had: the bundled encoding stands in
    folder.mkdir()
    for name, file in files.items():
        shutil.copy(file, folder / name)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), "utf-8")
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | end), "utf-8")
    return True
