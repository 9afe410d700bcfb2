"""One run over several processes: equal weights to begin with, batches weighed by tokens, and sharding.

Sharding is FSDP2 (``torch.distributed.fsdp.fully_shard``) as accelerate applies it: each process keeps a part
of every parameter, and layers are put together for as long as they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast
from torch import Tensor, nn


def stays_on_cpu(asked: bool) -> bool:
    """Whether a run is the CPU's: if that was asked for, or there is nothing else.

    Accelerate lets processes without a GPU work together only where it is told so; else each is alone.
    """
    devices = getattr(torch, "accelerator", torch.cuda), torch.backends.mps  # torch 2.6 knows of all kinds
    return asked or not any(device.is_available() for device in devices)


def token_weight(batch: Mapping[str, Tensor], accelerator: Accelerator) -> Tensor | float:
    """What this process's loss is multiplied by, so that the mean over processes is that of the whole batch.

    A language model's loss is a mean over tokens, and the shares of a batch seldom have equally many: its
    labels are (batch, length), shifted by one inside the model. Of rows with a label each, all shares have
    the same number, and the factor is 1.
    """
    labels = batch.get("labels")
    if accelerator.num_processes == 1 or labels is None or labels.ndim < 2 or labels.is_floating_point():
        return 1.0
    here = (labels[:, 1:] >= 0).sum()  # a token's label is its number, or below 0 if its loss is not taken
    return here * accelerator.num_processes / accelerator.reduce(here, "sum")


def whole(value: Tensor) -> Tensor:
    """All of a tensor of which each process has a part; every process must ask. Others stay as they are."""
    return cast(Any, value).detach().full_tensor() if hasattr(value, "full_tensor") else value


def shared_like(value: Tensor, other: Any) -> Tensor:
    """A whole tensor, shared out over the processes if ``other`` is; every process must have it."""
    if not hasattr(other, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


class Sharded:
    """A model that is to be sharded, and how it is made whole again.

    Make it before accelerate prepares the model, call `free` after that, and `restore` at the end.

    Parameters
    ----------
    model
        Its weights become the main process's on all processes.
    accelerator
        The run's. Its state is told to shard, until `close`.

    Raises
    ------
    ValueError
        For weights that are stored in whole numbers, as bitsandbytes does in 4 and 8 bits, or trainable
        parameters of several types.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self.model = model
        self._check()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=_layers(model),
            cpu_ram_efficient_loading=False,  # it loses a model's buffers
        )
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        # Given to Accelerator, the plugin would be set aside on the CPU (accelerate 1.15), although gloo can
        # do all that it takes, and elsewhere it would stay switched on for the process's next run.
        self._kind = PartialState._shared_state["distributed_type"]
        state = accelerator.state._shared_state
        state["fsdp_plugin"], state["distributed_type"] = plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        for tensor in [*model.parameters(), *model.buffers()]:
            here = tensor.detach().to(accelerator.device)
            tensor.detach().copy_(broadcast(here))
        # what sharding changes of the modules: their classes, parameters and hooks
        self._modules = [(module, type(module), _contents(module)) for module in model.modules()]
        self._parameters = dict(model.named_parameters())

    def _check(self) -> None:
        for name, value in self.model.named_parameters():
            if not value.is_floating_point():
                raise ValueError(
                    f"{name} is stored as {str(value.dtype).removeprefix('torch.')}, and quantised weights "
                    "cannot be sharded: take a base of 4 or 2 bytes a weight, or leave shard out."
                )
        kinds = {
            str(value.dtype).removeprefix("torch.")
            for value in self.model.parameters()
            if value.requires_grad
        }
        if len(kinds) > 1:
            raise ValueError(
                f"The trainable parameters are of types {', '.join(sorted(kinds))}, and sharding takes one: "
                "convert them, or leave shard out."
            )

    def free(self) -> None:
        """Let go of the whole parameters, of which the shards are copies."""
        for value in self._parameters.values():
            value.data = value.new_empty(0)

    def reshard(self) -> None:
        """Put shards back in place where a forward pass without a backward one left whole parameters."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def restore(self) -> None:
        """Gather all parameters on the CPU and undo the sharding; every process must call it."""
        self.reshard()
        for name, value in self.model.named_parameters():
            self._parameters[name].data = whole(value).cpu()
        for module, kind, kept in self._modules:
            module.__class__ = kind
            for name in vars(module).keys() - kept.keys():
                del vars(module)[name]
            for name, entries in kept.items():
                if entries is not None:  # in place: a handle that removes a hook holds the dictionary
                    vars(module)[name].clear()
                    vars(module)[name].update(entries)
        self.model.cpu()  # the buffers too

    def close(self) -> None:
        """Leave accelerate's state, which outlives a run, as it was before."""
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = self._kind


def _contents(module: nn.Module) -> dict[str, dict | None]:
    """The names of a module's attributes, with copies of its dictionaries of parameters and hooks."""
    return {
        name: dict(value) if isinstance(value, dict) and (name == "_parameters" or "_hooks" in name) else None
        for name, value in vars(module).items()
    }


def _layers(model: nn.Module) -> list[str]:
    """The classes of layers that transformers says to keep together, of those that the model has.

    Layers with an embedding in them are left out: accelerate shards the input embedding by itself, and FSDP
    takes no parameter twice.
    """
    kept = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    found: dict[str, bool] = {}
    for part in model.modules():
        embeds = any(isinstance(inner, nn.Embedding) for inner in part.modules())
        found[type(part).__name__] = found.get(type(part).__name__, False) or embeds
    return sorted(name for name in kept if found.get(name) is False)
