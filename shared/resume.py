"""What a training run needs to go on after a stop or a crash, in one file: `save_state` and `load_state`."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shared.files import write_atomically


@dataclass
class History:
    """What happened in a training run: one entry per evaluation in the lists, and how far it came."""

    step: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    train_loss: list = field(default_factory=list)  # mean over the steps since the entry before
    val_loss: list = field(default_factory=list)
    recent_losses: list = field(default_factory=list)  # of the steps since the last entry
    steps_done: int = 0
    tokens_done: int = 0
    interrupted: bool = False

    def add_step(self, loss, n_tokens):
        """A step is done."""
        self.steps_done += 1
        self.tokens_done += n_tokens
        self.recent_losses.append(loss)

    def add_entry(self, val_loss):
        """An entry: where the run is, its mean loss since the last entry, and `val_loss`."""
        self.step.append(self.steps_done)
        self.tokens.append(self.tokens_done)
        self.train_loss.append(sum(self.recent_losses) / len(self.recent_losses))
        self.val_loss.append(val_loss)
        self.recent_losses = []


def checksum(tensors, state):
    """SHA-256 of a run's tensors (with names, formats and shapes) and of its `state`, a string."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def save_state(file, model, optimizer=None, scaler=None, history=None):
    """Write all that a run needs to go on into one safetensors file: weights, optimizer, random state, history.

    Written atomically, with a checksum of its contents. Raises FloatingPointError for numbers that are not finite, with
    which no run can go on, and OSError, naming the file, where it cannot be written; an older one is then untouched.
    """
    file = Path(file)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}  # tied weights under one name
    state = {"config": asdict(model.config), "history": asdict(history or History())}
    if optimizer is not None:
        optimizer_state = optimizer.state_dict()
        state["param_groups"] = optimizer_state["param_groups"]
        for i, values in optimizer_state["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FloatingPointError(f"{name} is not finite: it is not saved, an older {file} is untouched")
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    state = json.dumps(state)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as part:
            save_file(tensors, part, metadata={"format": "pt", "state": state, "sha256": checksum(tensors, state)})
    except (OSError, SafetensorError) as error:
        raise OSError(f"{file} could not be written ({error}); an older checkpoint there is untouched") from None


def read_state(file):
    """(tensors by name, state) of a file that `save_state` wrote.

    Raises FileNotFoundError when there is none, ValueError when it is not whole, down to the last bit.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        if metadata.get("sha256") != checksum(tensors, metadata.get("state", "")):
            raise ValueError("its checksum is missing or is not that of its contents")
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{file} is no whole checkpoint: {error}") from None
    return tensors, json.loads(metadata["state"])


def load_state(file, model, optimizer=None, scaler=None):
    """Read what `save_state` wrote into `model` (and optimizer, scaler, random state); returns the `History`.

    Raises FileNotFoundError when there is none, ValueError when the file is damaged, of another configuration or lacks
    the optimizer's state; then nothing has been changed.
    """
    tensors, state = read_state(file)
    ours = asdict(model.config)
    differ = [f"{k} {state['config'].get(k)} (here {v})" for k, v in ours.items() if state["config"].get(k) != v]
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    if differ or {name: tensor.shape for name, tensor in weights.items()} != shapes:
        raise ValueError(f"{file} belongs to another model: {', '.join(differ) or 'other layers'}")
    if optimizer is not None:
        if "param_groups" not in state:
            raise ValueError(f"{file} holds no state of an optimizer: it was saved without one")
        values = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".", 2)
                values.setdefault(int(i), {})[key] = tensor
        groups = state["param_groups"]
        for group in groups:  # JSON made lists of tuples, such as AdamW's betas
            group |= {k: tuple(v) for k, v in group.items() if isinstance(v, list) and k != "params"}
        optimizer.load_state_dict({"state": values, "param_groups": groups})
    model.load_state_dict(weights, strict=False)  # a tied head is stored once
    if scaler is not None and state.get("scaler"):  # {} of a run in another number format
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return History(**state["history"] | {"interrupted": False})
