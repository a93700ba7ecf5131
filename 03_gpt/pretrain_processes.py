"""How 03_gpt/pretrain.py computes: which loss, compiled or not, on one device or in many processes (DDP, FSDP)."""

import os
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

from shared.gpt import GPTModel
from shared.loss import chunked_loss, next_token_loss
from shared.runtime import autocast_dtype, get_device


def choose_loss(device, config, batch):
    """The plain loss, or the chunked one where logits of `batch` windows would take over a quarter of all memory.

    The plain one is the faster one wherever it fits. Measured on two cores with bfloat16 units (AMD EPYC, PyTorch 2.13,
    eager, context 256, batches of 4): 483 tokens/s to 395 with 124M parameters, 1,499 to 1,150 with 30M; the chunked
    one saved 7 % of the memory (2,803 MB to 3,013). Counted are about three tensors of float32: the logits, their
    logarithms of probabilities, their gradient.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33
    logits = batch * config.context_length * config.vocab_size * 4 * 3
    return chunked_loss if logits > memory / 4 else next_token_loss


def compile_or_eager(function):
    """`torch.compile(function)`; where that does not work, one line says so and the plain function is used."""
    chosen = torch.compile(function)

    def run(*args):
        nonlocal chosen
        try:
            return chosen(*args)
        except Exception as error:
            if chosen is function:
                raise
            print(f"torch.compile does not work here ({type(error).__name__}): going on without it")
            chosen = function
            return function(*args)

    return run


class LossModule(nn.Module):
    """A module whose forward pass is the loss, which is what DDP and FSDP can wrap: inputs, targets [B, T] -> []."""

    def __init__(self, model, loss_fn=next_token_loss, compiled=False):
        super().__init__()
        self.model, self.eager = model, loss_fn
        self.training_loss = compile_or_eager(loss_fn) if compiled else loss_fn

    def forward(self, inputs, targets):
        # evaluation is not compiled: it would be compiled a second time, for other settings
        return (self.training_loss if self.training else self.eager)(self.model, inputs, targets)


def call(module, inputs, targets):
    return module(inputs, targets)


def synchronised(n_batches):
    """A loss function for one `training_step`: with DDP, gradients travel with the last of its batches only."""
    done = 0

    def loss_fn(module, inputs, targets):
        nonlocal done
        done += 1
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = done == n_batches
        return module(inputs, targets)

    return loss_fn


def recompute_blocks(model):
    """Activation checkpointing (Chen et al. 2016): the backward pass computes the inside of each block once more."""
    for block in model.blocks:
        block.forward = partial(recompute, block.forward, use_reentrant=False)


def wrap(model, processes, batch, fsdp=False, compiled=False):
    """The module that a step calls: DDP where there are several processes, or FSDP2, which gives each process a share
    of weights, gradients and optimizer state."""
    device = processes.device
    module = LossModule(model, choose_loss(device, model.config, batch), compiled)
    if fsdp:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes a second or two

        mesh = dist.init_device_mesh(device.type, (processes.world,))
        # On a CPU, autocast alone rounds: its layer_norm wants input and weight in one format.
        param_dtype = autocast_dtype(device) if device.type == "cuda" else None
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, cast_forward_inputs=False)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh)  # embeddings and head stay in float32
    if processes.world > 1:
        if compiled:
            torch._dynamo.config.optimize_ddp = False  # it cannot split a graph that computes blocks once more
        return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)
    return module


def is_shared(tensor):
    """Whether each process holds only a share of it."""
    return hasattr(tensor, "full_tensor")


def gather(model, optimizer):
    """(model, optimizer) with all their numbers in this process, for a checkpoint. All processes must take part."""
    if not any(map(is_shared, model.parameters())):
        return model, optimizer

    def whole(value):
        return value.full_tensor().cpu() if is_shared(value) else value

    with torch.device("meta"):
        gathered = GPTModel(model.config)
    gathered.load_state_dict({name: whole(value) for name, value in model.state_dict().items()}, assign=True)
    if model.config.tie_weights:
        gathered.head.weight = gathered.token_embedding.weight
    state = optimizer.state_dict()
    state["state"] = {i: {name: whole(v) for name, v in values.items()} for i, values in state["state"].items()}
    return gathered, SimpleNamespace(state_dict=lambda: state)


def load_optimizer(optimizer, state):
    """Load a gathered optimizer state; of sharded parameters each process keeps its share."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def share(value, p):
        if is_shared(p) and value.shape == p.shape:
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
        return value

    values = {i: {name: share(v, parameters[i]) for name, v in vs.items()} for i, vs in state["state"].items()}
    optimizer.load_state_dict(state | {"state": values})


class Processes:
    """This process among those that torchrun started (or alone): its number, its device, and sums over all."""

    def __init__(self):
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = get_device()
        if self.world > 1:
            if self.device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        if self.device.index is not None:
            torch.cuda.set_device(self.device)

    def total(self, *values):
        """The sum of each number over all processes."""
        if self.world == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def close(self):
        if self.world > 1:
            dist.destroy_process_group()
