"""A model's weights out of safetensors files: found, checked against the model, and put into it without a copy.

Weights are read from safetensors or GGUF files only, never from a pickle, which could run code. The names and settings
of one architecture stand in its own module.
"""

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from shared import gpt, llama_files
from shared.llama import LlamaConfig, LlamaModel

# model_type in config.json: the module that knows this architecture's names and settings, its config, its model.
ARCHITECTURES = {
    "gpt2": (gpt, gpt.GPTConfig, gpt.GPTModel),
    "llama": (llama_files, LlamaConfig, LlamaModel),
}


class _SkipInit(TorchFunctionMode):
    """While it is on, `torch.nn.init` does nothing: on "meta" it would import a second's worth of modules."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        skipped = getattr(function, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if skipped else function(*args, **kwargs or {})


def architecture_of(config):
    """(module, class of the model) for models with this config. Raises ValueError for one of no known class."""
    for module, config_class, model_class in ARCHITECTURES.values():
        if isinstance(config, config_class):
            return module, model_class
    raise ValueError(f"there are no checkpoints for a {type(config).__name__}, only for {', '.join(ARCHITECTURES)}")


def empty_model(config):
    """A model with this config on the device "meta": its tensors have shapes, but no memory and no numbers."""
    with torch.device("meta"), _SkipInit():
        return architecture_of(config)[1](config)


def find_tensors(files):
    """{published name: memory-mapped tensor} of all tensors in the safetensors `files`. Raises ValueError."""
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file (cut off in a download?): {error}") from None
    return tensors


def load_weights(model, files, from_published, extra=()):
    """An `empty_model` with the weights of the safetensors `files`, in float32, on the CPU, in eval mode.

    Its tensors lie in the memory-mapped files: nothing is read before it is used, nothing is held twice, and what
    training changes is copied page by page. So a file must not be written to while the model lives (replacing it is
    fine). `from_published`: the architecture's function. `extra` names tensors that may stand beside the model's.
    """
    tensors, weights = from_published(find_tensors(files), model.state_dict()), {}
    check_tensors(tensors, model, files, extra)
    for name, parameter in model.named_parameters():
        weights[name] = tensors[name][: len(parameter)].float()  # rows after the vocabulary are padding
    return put_weights(model, weights)


def put_weights(model, weights):
    """An `empty_model` with these `weights` {our name: tensor}, in eval mode."""
    model.load_state_dict(weights, strict=False, assign=True)
    if model.config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model.eval()


def check_tensors(tensors, model, files, extra=()):
    """Raise ValueError, naming the tensor, unless `tensors` {our name: tensor} are those of `model`, found in `files`.

    The embedding and the head may have more rows than the vocabulary; a tied head may be there or not.
    """
    where, wanted = ", ".join(map(str, files)), dict(model.named_parameters())
    tied = {"head.weight"} if model.config.tie_weights else set()
    odd = {"lacks": wanted.keys() - tensors.keys(), "has unknown": tensors.keys() - wanted.keys() - {*extra} - tied}
    if any(odd.values()):
        kind = f"{type(model).__name__} of {model.config.n_layers} layers, tie_weights={model.config.tie_weights}"
        said = [f"{what} {', '.join(sorted(names)[:3])} ({len(names)})" for what, names in odd.items() if names]
        raise ValueError(f"{where} is no {kind}: it {' and '.join(said)}")
    for name, parameter in wanted.items():
        tensor, longer = tensors[name], name in ("token_embedding.weight", "head.weight") and tensors[name].dim()
        if (tensor[: len(parameter)] if longer else tensor).shape != parameter.shape or not tensor.is_floating_point():
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{where}: {name} is {found}; the model has {list(parameter.shape)} for it")
    if tied & tensors.keys() and not torch.equal(tensors["head.weight"], tensors["token_embedding.weight"]):
        raise ValueError(f"{where}: head.weight is not equal to token_embedding.weight, to which the config ties it")
