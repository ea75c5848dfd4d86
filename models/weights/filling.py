"""Fill a network with weights, which must match exactly: missing or extra tensors are an error.

Names are compared without the prefixes of wrappers, which a file may have or not: those of PyTorch's own (`module.`,
`_orig_mod.`) and of training programs (`model.`, `net.`, `network.`), and `vmunet.`, in which VMUNet has all of its
layers and VMUNetV2 its encoder.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

WRAPPERS = re.compile(r"^((module|_orig_mod|model|net|network|vmunet)\.)+")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NAMES_SHOWN = 5
MOST_REPEATED = 2**31  # bytes of tensors beyond the size of the file: a tensor can repeat a few numbers
Network = TypeVar("Network", bound=nn.Module)


def fitted(
    build: Callable[[], Network], weights: Mapping[str, Tensor], path: str | Path, config: str | Path
) -> Network:
    """Return the network that `build` makes of the values of the file `config`, filled with the weights of the file
    `path`, in eval mode on the CPU.

    Raises ValueError for values that make no network and for weights of another network, before it allocates memory,
    because the values of a damaged file may ask for any amount."""
    try:
        with torch.device("meta"):
            expected = inner_weights(build())
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{config}: the configuration stored in it can't be used: {found}") from error
    check_fit(expected, weights, path)
    network = build()
    copy_weights(network, weights)
    return network.eval()


def inner_name(name: str) -> str:
    """Return a parameter's name without the prefixes of wrappers."""
    return WRAPPERS.sub("", name)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside GraphedModel and torch.compile: names in checkpoints must not depend on them."""
    inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
    return model if inner is None else unwrap(inner)


def inner_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network's state dict by their inner names."""
    return {inner_name(name): tensor for name, tensor in unwrap(model).state_dict().items()}


def fill_network(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path, left: Collection[str] = ()) -> None:
    """Fill a network with exactly these weights, by inner name, of the file `path`; skip the names in `left`.

    Raises ValueError, before anything is filled, if names or shapes are not the network's."""
    state = {name: tensor for name, tensor in inner_weights(model).items() if name not in left}
    weights = {name: tensor for name, tensor in weights.items() if name not in left}
    check_fit(state, weights, path)
    copy_weights(model, weights)


def copy_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights, by inner name, into a network; keep the others."""
    network = unwrap(model)
    full_names = {inner_name(name): name for name in network.state_dict()}
    network.load_state_dict({full_names[name]: tensor for name, tensor in weights.items()}, strict=False)


def check_fit(state: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ValueError unless the weights have the names and shapes of a network's state."""
    missing = [name for name in state if name not in weights]
    foreign = [name for name in weights if name not in state]
    if missing or foreign:
        raise ValueError(
            f"{path}: found {len(state) - len(missing)} of this network's {len(state)} tensors and {len(foreign)} "
            f"foreign ones, expected exactly these; not found: {first(missing)}; foreign: {first(foreign)}"
        )
    check_tensors(path, weights, state)


def check_tensors(path: str | Path, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError that lists the weights whose shapes are not those of `state`, or names one that is not dense, is
    of another kind of number, or holds a value that is not finite as a network holds it."""
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(state[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != state[name].shape
    ]
    if wrong:
        raise ValueError(f"{path}: found {len(wrong)} tensors of another shape than the model's: {first(wrong)}")
    repeated = 0
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise ValueError(f"{path}: found {name} as a {kind} tensor, expected a dense one")
        repeated += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
        if repeated > MOST_REPEATED:
            raise ValueError(f"{path}: found {name} {list(tensor.shape)} with few stored values, expected all of them")
        if tensor.dtype not in FLOATS and (state[name].is_floating_point() or tensor.dtype.is_complex):
            raise ValueError(f"{path}: found {name} in {tensor.dtype}, expected one of {first(map(str, FLOATS))}")
        held = tensor.to(state[name].dtype) if state[name].is_floating_point() else tensor  # 1e300: inf in float32
        if not held.isfinite().all():
            raise ValueError(f"{path}: found NaN or infinite values in {name}, expected weights that were trained")


def first(names: Iterable[str]) -> str:
    """Return the first NAMES_SHOWN of the names, and how many more there are; "none" without any."""
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(names[:NAMES_SHOWN]) or "none") + more
