"""The assistant of lesson 5.1, for the lessons that judge it: read from its folder, or made by the same lines."""

import copy
import json

import families
import torch.nn.functional as F

from shared import data
from shared.checkpoints import load_model
from shared.instructions import InstructionData, answer_loss, check_entries, instruction_loader, respond
from shared.runtime import get_device
from shared.training import train


def load_assistant(base, tokenizer, training, test, *, epochs, lr, new_tokens):
    """What lesson 5.1 made of `base`: (the model, its answers to the entries of `test`, in their order).

    Both come from the folder `<base>-assistant` in the data folder. Where it is not there, is not whole, or was made
    from another base or other entries, a line says so, and the model is fine-tuned on `training`, in memory only.
    """
    folder = data.places.data_dir() / f"{tokenizer.name}-assistant"
    try:
        model, answers = read_assistant(folder, base, tokenizer, test)
        print(f"the assistant: {folder.parent.name}/{folder.name}, with its {len(answers)} answers")
    except (OSError, ValueError) as error:
        why = f"does not fit ({str(error).replace(str(folder), folder.name)})" if folder.exists() else "is not there"
        print(f"{folder.parent.name}/{folder.name} {why}: fine-tuning one in memory, as lesson 5.1 does")
        model = make_assistant(base, tokenizer, with_families(training, test), epochs, lr)
        answers = respond(model, tokenizer, test, new_tokens)
    return model, answers


def read_assistant(folder, base, tokenizer, test):
    """(model, answers) from a folder of lesson 5.1. Raises OSError or ValueError where they do not fit together."""
    model, its_tokenizer = load_model(folder)
    if model.config != base.config or its_tokenizer is None or its_tokenizer.n_vocab != tokenizer.n_vocab:
        raise ValueError("its model is of another size")
    model, words = model.to(get_device()), base.token_embedding.weight.detach().flatten()
    if F.cosine_similarity(words, model.token_embedding.weight.detach().flatten(), dim=0) < 0.9:
        raise ValueError("it was made from another base")
    rows = json.loads((folder / "responses.json").read_text(encoding="utf-8"))
    fields = ("instruction", "input", "output")
    try:
        its_entries = [{field: row[field] for field in fields} for row in rows]
        answers = [str(row["model_response"]) for row in rows]
    except (TypeError, KeyError):
        raise ValueError("its responses.json is no list of entries with a model_response") from None
    if its_entries != test:
        raise ValueError("its answers belong to other entries")
    again = respond(model, tokenizer, test[:8], 6)
    if sum(old.startswith(new) for old, new in zip(answers, again, strict=False)) < len(again) / 2:
        raise ValueError("its answers are those of another model")
    return model, answers


def with_families(training, test):
    """The entries that lesson 5.1 trains on: its narrow families join, and what would give their test away goes."""
    narrow, narrow_test = families.items()
    return check_entries(test + families.without(training, narrow_test) + narrow)[0][len(test) :]


def make_assistant(base, tokenizer, training, epochs, lr):
    """A copy of `base`, fine-tuned as in lesson 5.1."""
    model = copy.deepcopy(base)
    loader = instruction_loader(InstructionData(training, tokenizer, min(256, base.config.context_length)), 8)
    history = train(model, loader, loss_fn=answer_loss, epochs=epochs, lr=lr,
                    warmup_steps=epochs * len(loader) // 10, weight_decay=0.1)  # fmt: skip
    if history.interrupted:
        raise KeyboardInterrupt
    print(f"{history.steps_done} steps on {len(training)} entries")
    return model
