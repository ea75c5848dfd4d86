"""Filling a network with weights. They fill what they should fill, to the last tensor, or are refused; nothing is ever
matched in part.

Names are compared without what wraps a network, so that it does not matter with which of it a file was written:
`module.`, `_orig_mod.`, and `vmunet.`, in which VMUNet has all of its layers and VMUNetV2 its encoder.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

WRAPPERS = re.compile(r"^((module|_orig_mod|vmunet)\.)+")
NAMES_SHOWN = 5


def inner_name(name: str) -> str:
    """A parameter's name without the prefixes of what wraps the network."""
    return WRAPPERS.sub("", name)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside GraphedModel and torch.compile: names in checkpoints must not depend on them."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None:
            return model
        model = inner


def inner_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict by their inner names."""
    return {inner_name(name): tensor for name, tensor in unwrap(model).state_dict().items()}


def fill_network(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path, left: Collection[str] = ()) -> None:
    """Puts exactly these weights, by inner name and from the file `path`, into a network; names in `left` stay as they
    are.

    Raises ValueError, before anything is filled, if names or shapes are not the network's."""
    state = {name: tensor for name, tensor in inner_weights(model).items() if name not in left}
    weights = {name: tensor for name, tensor in weights.items() if name not in left}
    check_fit(state, weights, path)
    try:
        copy_weights(model, weights)
    except RuntimeError as error:  # tensors of another kind, such as sparse ones
        raise ValueError(
            f"{path}: found weights that can't be copied: {str(error).splitlines()[-1].strip()}"
        ) from error


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts weights, by inner name, into a network; the others stay as they are."""
    network = unwrap(model)
    full_names = {inner_name(name): name for name in network.state_dict()}
    network.load_state_dict({full_names[name]: tensor for name, tensor in weights.items()}, strict=False)


def check_fit(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises ValueError unless the weights have the names and shapes of a network's state."""
    missing = [name for name in state if name not in weights]
    foreign = [name for name in weights if name not in state]
    if missing or foreign:
        raise ValueError(
            f"{path}: found {len(state) - len(missing)} of this network's {len(state)} tensors and {len(foreign)} "
            f"foreign ones, expected exactly these; not found: {first(missing)}; foreign: {first(foreign)}"
        )
    check_shapes(path, weights, state)
    check_values(path, weights)


def check_shapes(path: str | Path, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names the weights whose shapes are not those of `state`."""
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(state[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
    ]
    if wrong:
        raise ValueError(f"{path}: found {len(wrong)} tensors of another shape than the model's: {first(wrong)}")


def check_values(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names a weight that is not dense, or not a finite number."""
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise ValueError(f"{path}: found {name} as a {kind} tensor, expected an ordinary one")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: found NaN or infinite values in {name}, expected weights that were trained")


def first(names: Iterable[str]) -> str:
    """The first NAMES_SHOWN of the names, and how many more there are; "none" without any."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(names[:NAMES_SHOWN]) or "none") + more
