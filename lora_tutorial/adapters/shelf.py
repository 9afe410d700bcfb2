"""One encoder in memory, many adapters on a shelf: swapping a task is pointing at other tensors."""

from __future__ import annotations

import copy
import os
from typing import Any, NamedTuple, NoReturn, cast

from torch import nn
from transformers import RobertaModel

from lora_tutorial.adapters.files import needed_names, read_adapter
from lora_tutorial.adapters.validation import check_fit, check_length
from lora_tutorial.lora.config import LoraConfig
from lora_tutorial.lora.merge import lora_modules
from lora_tutorial.lora.parameters import parameters_hash
from lora_tutorial.models.encoders import load_encoder
from lora_tutorial.models.roberta import LoraWrapperRoberta


class _Kept(NamedTuple):
    """An adapter on the shelf: its model (until used a head), its tensors for the encoder, its scale."""

    model: LoraWrapperRoberta
    tensors: dict[str, nn.Parameter]
    config: LoraConfig


class _Elsewhere(nn.Module):
    """Stands in for the encoder in every model but the one in use."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(f"Another adapter has the encoder; call use({self.name!r}) before this model.")


class AdapterShelf:
    """Adapters of `LoraWrapperRoberta` models around one encoder.

    Every adapter has a model of its own, which is no more than a head; the encoder goes to the one in use.
    `use` points each parameter of the encoder at the adapter's tensor where there is one, and at the base's
    where there is none. Nothing is copied, added or subtracted, so nothing can be left over. (Section 4.1 of
    the LoRA paper swaps merged weights, by subtracting one update and adding the next.)

    Parameters
    ----------
    encoder
        As for ``load_encoder``; or a ``RobertaModel`` that it has loaded, on whatever device. That is frozen
        and shares its memory with the shelf.

    Attributes
    ----------
    current
        Name of the adapter in use; ``None`` before the first `use`.

    Raises
    ------
    TypeError, ValueError
        If the model given is no ``RobertaModel`` without adapters, has no weights (``"meta"``), or does not
        know the name it was loaded by. For a name, what ``load_encoder`` raises.
    """

    def __init__(self, encoder: str | os.PathLike[str] | RobertaModel = "minilm") -> None:
        base = encoder if isinstance(encoder, nn.Module) else load_encoder(encoder).model
        if not isinstance(base, RobertaModel) or any(True for _ in lora_modules(base)):
            raise TypeError(
                "A shelf needs a RobertaModel without adapters, or its name, as load_encoder takes it; got "
                f"{'one with adapters' if isinstance(base, RobertaModel) else type(base).__name__}."
            )
        if any(parameter.is_meta for parameter in base.parameters()):
            raise ValueError("This encoder has no data (device meta); load it with weights='pretrained'.")
        self._name = base.config.name_or_path
        if not self._name:
            raise ValueError("This encoder does not know the name it was loaded by; give the name instead.")
        self._base = nn.ModuleDict({"model": base.requires_grad_(False)})  # names as in an adapter's file
        self._frozen = dict(self._base.named_parameters())
        same = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
        self._encoder = copy.deepcopy(base, same).eval()  # other modules, the very same tensors
        LoraWrapperRoberta.replace_self_attention(self._encoder, r=1)
        live = nn.ModuleDict({"model": self._encoder})
        self._layers = [module for _, module in lora_modules(live)]
        self._slots = {key: _slot(live, key) for key, _ in live.named_parameters()}  # where a tensor belongs
        self._kept: dict[str, _Kept] = {}
        self.current: str | None = None

    @property
    def names(self) -> list[str]:
        """What `use` takes, in the order in which it was added."""
        return list(self._kept)

    def add(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Read an adapter and keep it under ``name``; the one in use stays in use.

        Parameters
        ----------
        name
            What `use` will call it.
        folder
            What `save_adapter` wrote for a `LoraWrapperRoberta`.

        Raises
        ------
        FileNotFoundError, ValueError
            If the name is taken, the folder holds no whole adapter of a `LoraWrapperRoberta`, or the adapter
            was trained on another base. The shelf is then as it was.
        RuntimeError
            If the adapter in use is merged or switched off, as for `use`.
        """
        if name in self._kept:
            raise ValueError(f"The shelf has an adapter {name!r} already; choose another name.")
        settings, tensors = read_adapter(folder)
        described = settings["base"]
        if "wrapper" not in described:
            raise ValueError(f"{folder} holds no adapter of a LoraWrapperRoberta; use load_adapter for it.")
        self._refuse_if_merged()  # the base would have other weights than its own
        if parameters_hash(self._base, tensors) != described["sha256_of_frozen_parameters"]:
            raise ValueError(
                f"The adapter in {folder} was not trained on this shelf's encoder, {self._name!r}, but on "
                f"{described['name']!r} with other weights. Make a shelf of that one."
            )
        model = LoraWrapperRoberta(**described["wrapper"] | {"model_id": self._name, "weights": "meta"})
        check_length(folder, settings["metadata"], self._base["model"].config)
        check_fit(folder, tensors, dict(model.named_parameters()), needed_names(model))
        config = next(module for _, module in lora_modules(model)).lora_config
        model.model, model.config, model.init_args = (
            cast(Any, _Elsewhere(name)),
            self._encoder.config,
            described["wrapper"],
        )
        # Copies, as load_adapter makes them: where a tensor lies in memory can decide a product's last bit.
        device = self._encoder.device
        own = {key: nn.Parameter(value.to(device, copy=True)) for key, value in tensors.items()}
        for key in dict(model.named_parameters()):  # the head: what is left of the model
            setattr(*_slot(model, key), own.pop(key))
        model.adapter_metadata = settings["metadata"]
        self._kept[name] = _Kept(model, own, config)

    def use(self, name: str) -> LoraWrapperRoberta:
        """Give the encoder to an adapter: bit for bit the model that `load_adapter` makes of its folder.

        Returns
        -------
        LoraWrapperRoberta
            In evaluation mode. It has the encoder until `use` gives it to another; then it says so.

        Raises
        ------
        ValueError
            If the shelf has no such adapter.
        RuntimeError
            If the adapter in use is merged or switched off: its encoder is not fit for another.
        """
        if name not in self._kept:
            raise ValueError(f"The shelf has no adapter {name!r}; it has {', '.join(self.names) or 'none'}.")
        self._refuse_if_merged()
        if self.current is not None:
            self._kept[self.current].model.model = cast(Any, _Elsewhere(self.current))
        model, tensors, config = self._kept[name]
        model.model, self.current = self._encoder, name
        for key, (module, leaf) in self._slots.items():
            setattr(module, leaf, tensors[key] if key in tensors else self._frozen[key].requires_grad_(False))
        for layer in self._layers:
            layer.lora_config = config
        return model.eval()

    def _refuse_if_merged(self) -> None:
        if not all(layer.lora_active for layer in self._layers):
            raise RuntimeError(
                f"The adapter in use, {self.current!r}, is merged or switched off: call unmerge_lora on its "
                "model, or leave disable_lora, before the shelf changes. After unload_lora make a new shelf."
            )


def _slot(model: nn.Module, parameter: str) -> tuple[nn.Module, str]:
    module, _, leaf = parameter.rpartition(".")
    return model.get_submodule(module), leaf
