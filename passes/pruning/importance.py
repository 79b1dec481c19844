"""How important channels are: criteria by name, and one score per class of a group.

A criterion looks at one `View` at a time (one weight of one layer, with the activations that meet it) and
returns one number per channel; larger is kept longer. What belongs together then is put together: the mean
over the channels of a class, and a reduction over all layers of the group.

A criterion of one's own is a function:

    @register_importance("spread")
    def spread(view):
        '''Standard deviation within a filter.'''
        return view.weights.std(axis=1)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import onnx_ir as ir

from ...ir.errors import PassError
from ..channels import Dependencies, Group
from .members import Member, Members, Role, positions, rows_of
from .moments import Moments, Place

Reduction = Literal["mean", "sum", "max", "prod", "first"]
Normalization = Literal["mean", "none", "sum", "max", "standard", "gaussian", "lamp"]

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class View:
    """What a criterion sees.

    Attributes:
        node: The layer.
        weights: float64 [channels, everything else]: the filters of a producer, the columns of a consumer,
            the scales of a normalization ([channels, 1]). Empty ([channels, 0]) where a consumer
            multiplies two activations.
        activations: Statistics per channel of what enters a consumer; None for criteria that ask for no data.
        generator: Random numbers, the same in every run with one seed.
    """

    node: ir.Node
    weights: np.ndarray
    activations: Moments | None
    generator: np.random.Generator


Criterion = Callable[[View], np.ndarray]
F = TypeVar("F", bound=Criterion)


@dataclass(frozen=True)
class Importance:
    """A criterion and what it wants to see.

    Attributes:
        name: As in the option `importance=`.
        role: Whether it looks at the layers that make the channels, scale them or read them.
        calibrated: Whether it needs activations, so calibration data.
        score: From a view to one finite number per channel.
    """

    name: str
    role: Role
    calibrated: bool
    score: Criterion

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (self.score.__doc__ or "").strip().split("\n")[0]


_REGISTERED: dict[str, Importance] = {}


def register_importance(name: str, *, role: Role = "producer", calibrated: bool = False) -> Callable[[F], F]:
    """Make a function from `View` to one score per channel usable as `importance=name`.

    Args:
        name: The name; registering it again replaces it.
        role: Which layers it looks at: "producer" (default), "scale" or "consumer".
        calibrated: Whether it wants `view.activations` (only consumers have them).

    Raises:
        PassError: Activations are asked for at layers that have none.
    """
    if calibrated and role != "consumer":
        raise PassError(f"importance '{name}': only role='consumer' sees activations")

    def add(score: F) -> F:
        _REGISTERED[name] = Importance(name, role, calibrated, score)
        return score

    return add


def importance_names() -> list[str]:
    """Names of all criteria, sorted."""
    return sorted(_REGISTERED)


def find_importance(name: str) -> Importance:
    """The criterion called `name`.

    Raises:
        PassError: There is none; the line suggests the nearest.
    """
    if name not in _REGISTERED:
        close = difflib.get_close_matches(name, _REGISTERED, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(importance_names())}"
        raise PassError(f"there is no importance '{name}'; {hint}")
    return _REGISTERED[name]


@register_importance("l1")
def _l1(view: View) -> np.ndarray:
    """L1 norm of the filter."""
    return np.linalg.norm(view.weights, 1, axis=1)


@register_importance("l2")
def _l2(view: View) -> np.ndarray:
    """L2 norm of the filter."""
    return np.sqrt(np.einsum("ij,ij->i", view.weights, view.weights))


@register_importance("fpgm")
def _fpgm(view: View) -> np.ndarray:
    """Distance of the filter from all others of its layer: near the geometric median it is redundant.

    Filter Pruning via Geometric Median, He et al. 2019.
    """
    squares = np.square(view.weights).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * (view.weights @ view.weights.T)
    return np.sqrt(np.maximum(distances, 0.0)).sum(axis=1)


@register_importance("bn-scale", role="scale")
def _bn_scale(view: View) -> np.ndarray:
    """Magnitude of the scale of the normalization behind the layer.

    Network Slimming, Liu et al. 2017.
    """
    return np.abs(view.weights).sum(axis=1)


@register_importance("random")
def _random(view: View) -> np.ndarray:
    """Chance."""
    return view.generator.random(len(view.weights))


@register_importance("apoz", role="consumer", calibrated=True)
def _apoz(view: View) -> np.ndarray:
    """Share of activations that are not zero.

    Network Trimming by the average percentage of zeros, Hu et al. 2016.
    """
    assert view.activations is not None
    return 1.0 - view.activations.share_of_zeros


@register_importance("activation", role="consumer", calibrated=True)
def _activation(view: View) -> np.ndarray:
    """Mean magnitude of the activation."""
    assert view.activations is not None
    return view.activations.mean_magnitude


@register_importance("wanda", role="consumer", calibrated=True)
def _wanda(view: View) -> np.ndarray:
    """Norm of the activation times the L1 norm of the weights that read it.

    Structured form of Wanda, Sun et al. 2024: |W| * ||x||, summed over the rows of W.
    """
    assert view.activations is not None
    if view.weights.shape[1] == 0:
        return view.activations.root_mean_square
    return view.activations.root_mean_square * np.abs(view.weights).sum(axis=1)


def places_of(members: Members, groups: Sequence[Group]) -> list[Place]:
    """Where activations are measured for a calibrated criterion."""
    sources = [m.source for index in range(len(groups)) for m in members.of(index, "consumer")]
    return list(dict.fromkeys((str(s[0].name), s[1]) for s in sources if s is not None))


def score_group(
    found: Dependencies,
    group: Group,
    members: Sequence[Member],
    criterion: Importance,
    *,
    reduction: Reduction = "mean",
    normalize: Normalization = "mean",
    moments: Mapping[Place, Moments] | None = None,
    seed: int = 0,
) -> np.ndarray | None:
    """Score every class of a group.

    Per layer: the criterion's score of every channel, averaged over the channels of a class and normalized,
    so that layers with large weights do not outvote others. Then the reduction over the layers,
    normalized again, so that groups compare.

    Returns:
        float64, one per class, or None where no layer can be scored.

    Raises:
        PassError: The criterion returned something else than one finite number per channel.
    """
    scores: list[np.ndarray] = []
    for member in members:
        view = _view(member, criterion, moments or {}, np.random.default_rng([seed, int(group.classes[0])]))
        if view is None:
            continue
        place, axis = (member.value, member.axis)
        if not view.weights.size and member.source is not None:
            place, axis = member.source
        per_class = _per_class(
            _checked(criterion, view), positions(found, group, place, axis), len(group.classes)
        )
        scores.append(normalized(per_class, normalize))
        if reduction == "first":
            break
    if not scores:
        return None
    return normalized(_reduced(np.stack(scores), reduction), normalize)


def _view(
    member: Member, criterion: Importance, moments: Mapping[Place, Moments], generator: np.random.Generator
) -> View | None:
    found = None
    if criterion.calibrated:
        found = moments.get((str(member.source[0].name), member.source[1])) if member.source else None
        if found is None or not found.count:
            return None
    rows = rows_of(member.value, member.axis)
    if rows is None:
        if found is None:
            return None
        return View(member.node, np.zeros((len(found.total), 0)), found, generator)
    if found is not None and len(found.total) != len(rows):
        found = _refolded(found, len(rows))
    return View(member.node, rows, found, generator)


def _refolded(moments: Moments, size: int) -> Moments | None:
    """Statistics over the channels of all groups of a grouped convolution, folded to those of one group."""
    times = len(moments.total) // size

    def fold(array: np.ndarray) -> np.ndarray:
        return array[: times * size].reshape(times, size).sum(axis=0)

    parts = (moments.total, moments.magnitude, moments.square, moments.zeros)
    return Moments(moments.count * times, *(fold(part) for part in parts))


def _checked(criterion: Importance, view: View) -> np.ndarray:
    size = len(view.weights)
    score = np.asarray(criterion.score(view), np.float64)
    if score.shape != (size,):
        raise PassError(
            f"importance '{criterion.name}' returned shape {list(score.shape)} at '{view.node.name}'; "
            f"it must be one number per channel, [{size}]"
        )
    # A weight that is not finite has no say; its channels go first.
    return np.nan_to_num(score, nan=0.0, posinf=float(np.finfo(np.float32).max), neginf=0.0)


def _per_class(scores: np.ndarray, place: np.ndarray, classes: int) -> np.ndarray:
    """Mean over the channels of every class; NaN for classes that this layer does not hold."""
    mine = place >= 0
    total = np.bincount(place[mine], scores[mine], classes)
    count = np.bincount(place[mine], minlength=classes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _reduced(scores: np.ndarray, reduction: Reduction) -> np.ndarray:
    """Over the layers (axis 0) that hold a class; 0 for a class that none holds."""
    held = ~np.isnan(scores)
    if reduction == "max":
        found = np.where(held, scores, -np.inf).max(axis=0)
        return np.where(held.any(axis=0), found, 0.0)
    if reduction == "prod":
        return np.where(held.any(axis=0), np.where(held, scores, 1.0).prod(axis=0), 0.0)
    total = np.where(held, scores, 0.0).sum(axis=0)
    if reduction == "sum":
        return total
    return total / np.maximum(held.sum(axis=0), 1)


def normalized(scores: np.ndarray, how: Normalization) -> np.ndarray:
    """Bring the scores of one layer or group to a common scale; NaN stays NaN.

    none; mean, max, sum: divided by it; standard: to 0..1; gaussian: mean 0, deviation 1; lamp: divided by
    the sum of all that are not smaller, which keeps at least one of every group (Lee et al. 2021).
    """
    if how == "none" or np.isnan(scores).all():
        return scores
    if how == "gaussian":
        return (scores - np.nanmean(scores)) / max(float(np.nanstd(scores)), _TINY)
    if how == "standard":
        low = float(np.nanmin(scores))
        return (scores - low) / max(float(np.nanmax(scores)) - low, _TINY)
    if how == "lamp":
        return _lamp(scores)
    means: dict[str, Callable[[np.ndarray], Any]] = {"mean": np.nanmean, "max": np.nanmax, "sum": np.nansum}
    divisor = float(means[how](scores))
    return scores / (divisor if abs(divisor) > _TINY else 1.0)


def _lamp(scores: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    ascending = np.nan_to_num(scores[order])
    rest = np.cumsum(ascending[::-1])[::-1]
    result = np.empty_like(scores)
    result[order] = ascending / np.maximum(rest, _TINY)
    return np.where(np.isnan(scores), np.nan, result)
