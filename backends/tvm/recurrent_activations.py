"""The activation functions of recurrent operators and their constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .decompose import Assembler


@dataclass(frozen=True)
class Activation:
    """An activation function by its ONNX name, with its constants (0 where it takes none)."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


DEFAULTS: dict[str, tuple[str, ...]] = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}
# The constants that a function takes, alpha first, by their default values. ONNX refers to the operators of
# the same names; where there is none by now, and for ThresholdedRelu, these are the reference's.
_CONSTANTS: dict[str, tuple[float, ...]] = {
    "Affine": (0.0, 0.0),
    "Elu": (1.0,),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01,),
    "Relu": (),
    "ScaledTanh": (0.0, 0.0),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": (0.0,),
}
_NAMES = {name.lower(): name for name in _CONSTANTS}


def activations_of(new: Assembler, kind: str, directions: int) -> list[Activation]:
    """The activations of all directions in order; constants go to those functions that take any.

    Raises:
        CompileError: a function that ONNX does not know, or too few of them.
    """
    names = new.attr("activations") or DEFAULTS[kind] * directions
    expected = len(DEFAULTS[kind]) * directions
    if len(names) != expected:
        raise new.error(f"{len(names)} activations are given where {expected} are needed")
    alphas, betas = iter(new.attr("activation_alpha") or ()), iter(new.attr("activation_beta") or ())
    found = []
    for given in names:
        name = _NAMES.get(given.lower())
        if name is None:
            raise new.error(f"'{given}' is no activation of recurrent operators; take one of {_choices()}")
        constants = _CONSTANTS[name]
        alpha = next(alphas, constants[0]) if constants else 0.0
        beta = next(betas, constants[1]) if len(constants) > 1 else 0.0
        found.append(Activation(name, float(alpha), float(beta)))
    return found


def by_direction(attributes: Mapping[str, Any]) -> tuple[tuple[Activation, ...], ...]:
    """The activations f, g and h of each direction, from the attributes of a `recurrence::Recurrence`."""
    given = zip(*(attributes[name] for name in ("activations", "alphas", "betas")), strict=True)
    found = [Activation(*each) for each in given]
    count = len(found) // len(attributes["backwards"])
    return tuple(tuple(found[i : i + count]) for i in range(0, len(found), count))


def _choices() -> str:
    return ", ".join(sorted(_CONSTANTS))
