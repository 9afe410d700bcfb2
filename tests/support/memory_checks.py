"""Which arrays a layer makes, and which it keeps for the backward pass."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Arrays(TorchDispatchMode):
    """Counts new arrays (not views, not results written into an operand) of one shape."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.seen = shape, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(tensor) and tuple(tensor.shape) == self.shape:
                storage = tensor.untyped_storage()
                self.seen[storage.data_ptr()] = storage  # kept alive, so that no address comes twice
        return out


def kept(layer, x, context=None, without=()):
    """Bytes that the forward pass keeps for the backward pass, each storage once, parameters left out."""
    given = {t.untyped_storage().data_ptr() for t in [*without, *layer.parameters()]}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with context or torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return sum(s.nbytes() for address, s in storages.items() if address not in given)
