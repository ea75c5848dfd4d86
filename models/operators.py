"""How functions of this package become operators of PyTorch, which torch.compile and the exporters call as one piece.

By the functions that torch.library.custom_op is made of: that one imports PyTorch's compiler at the first call, which
takes a second or several."""

from collections.abc import Callable
from typing import Any

import torch

# the name of the package that this module is in, so that the repository's `models` and an installed `vmunet` can be in
# one process
NAMESPACE = __name__.partition(".")[0]
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(function: Callable) -> Any:
    """Decorator: the function of tensors and plain values, which alters none of them, as the operator of its name."""
    name = function.__name__
    _LIBRARY.define(torch.library.infer_schema(function, mutates_args=(), op_name=name))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def register_fake(op: Any) -> Callable:
    """Decorator: what the operator returns, as far as shapes and types go, for tensors that hold no values."""
    return torch.library.register_fake(op, lib=_LIBRARY)


def register_backward(op: Any, backward: Callable, setup: Callable) -> None:
    """The operator's gradient: `backward(ctx, *gradients)`, after `setup(ctx, inputs, output)`."""
    torch.library.register_autograd(op, backward, setup_context=setup, lib=_LIBRARY)
