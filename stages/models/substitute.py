"""Other activations for a network that is built: `student.substitute: {silu: relu}`.

Only modules can be replaced; a call such as `F.silu(x)` leaves none, and is not looked for.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

CLASSES: Mapping[str, frozenset[str]] = {
    "relu": frozenset({"ReLU"}),
    "relu6": frozenset({"ReLU6"}),
    "silu": frozenset({"SiLU", "Swish", "SwishMe"}),
    "hardswish": frozenset({"Hardswish", "HardSwish", "HardSwishMe"}),
    "hardsigmoid": frozenset({"Hardsigmoid", "HardSigmoid", "HardSigmoidMe"}),
    "sigmoid": frozenset({"Sigmoid"}),
    "gelu": frozenset({"GELU", "GELUTanh", "QuickGELU"}),
    "mish": frozenset({"Mish", "MishMe", "HardMish", "HardMishMe"}),
    "elu": frozenset({"ELU"}),
    "selu": frozenset({"SELU"}),
    "celu": frozenset({"CELU"}),
    "leaky_relu": frozenset({"LeakyReLU"}),
    "prelu": frozenset({"PReLU"}),
    "softplus": frozenset({"Softplus"}),
    "tanh": frozenset({"Tanh"}),
    "hardtanh": frozenset({"Hardtanh"}),
}
"""Name in a config -> the classes that it means, of torch.nn and of timm (timm.layers)."""

REPLACEMENTS: Mapping[str, str] = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "leaky_relu": "LeakyReLU",
    "hardswish": "Hardswish",
    "hardsigmoid": "Hardsigmoid",
    "silu": "SiLU",
}
"""What may stand in for an activation -> its class in torch.nn."""

ADVICE: Mapping[str, str] = {
    "silu": "relu",
    "hardswish": "relu6",
    "gelu": "relu",
    "mish": "relu",
    "elu": "relu",
    "selu": "relu",
    "celu": "relu",
    "leaky_relu": "relu",
    "prelu": "relu",
    "softplus": "relu",
    "hardtanh": "relu6",
}
"""Activation -> the one that int8 kernels take with them and that is nearest to it."""


def check(wanted: Mapping[str, str]) -> None:
    """Raise ValueError for a name that is no activation, or that replaces itself."""
    for old, new in wanted.items():
        for name, known in ((old, tuple(CLASSES)), (new, tuple(REPLACEMENTS))):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                raise ValueError(f"'{name}' cannot stand here; {hint}(known: {', '.join(known)})")
        if old == new:
            raise ValueError(f"'{old}' would replace itself")


def substitute(model: nn.Module, wanted: Mapping[str, str]) -> None:
    """Replace the activations of `model` in place, all at once; weights of a PReLU go with it.

    A module that stands in several places is replaced in each. Raises UsageError, naming the
    activations that there are, when one of `wanted` is not among the modules.
    """
    from torch import nn

    found = _activations(model)
    missing = [name for name in wanted if name not in found.values()]
    if missing:
        raise UsageError(
            f"the network has no module of the activation '{missing[0]}' to replace",
            found=_listed(found) or "no activation modules at all",
            fix="name one that it has; a call such as F.silu(x) has to be changed in its code",
        )
    made: dict[nn.Module, nn.Module] = {}
    for path, name in found.items():
        if name in wanted:
            old = model.get_submodule(path)
            if old not in made:
                made[old] = getattr(nn, REPLACEMENTS[wanted[name]])()  # not in place, for taps
            model.set_submodule(path, made[old])


def _activations(model: nn.Module) -> dict[str, str]:
    """{module path: name of the activation}, a module in several places under each of its paths."""
    by_class = {kind: name for name, kinds in CLASSES.items() for kind in kinds}
    return {
        path: by_class[type(module).__name__]
        for path, module in model.named_modules(remove_duplicate=False)
        if path and type(module).__name__ in by_class
    }


def _listed(found: Mapping[str, str]) -> str:
    counts = Counter(found.values())
    return ", ".join(f"{name} ({n} of them)" for name, n in sorted(counts.items()))
