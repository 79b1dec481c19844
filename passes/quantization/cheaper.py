"""Cheaper mixes of precisions than one that keeps a budget, each tried on a whole model.

What a mix is expected to lose is the sum of what its layers lose alone. That says which mixes to try, not
what counts: layers that share grids, or whose errors cancel, make the sum wrong by some dB. So those come
first that are cheap and expected to lose no more than one that was kept, then the others, the least expected
loss first, until too many in a row have failed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .trials import Layer

Mix = tuple[str, ...]
"""Precisions in the order of the layers."""
Cost = tuple[float, int]
"""Multiply-accumulates times lanes, then bytes of weights."""

_ALL = 4096
"""As many mixes are gone through one by one; of more only those that differ in two layers."""
_PATIENCE_ALL, _PATIENCE = 32, 16
# Mixes that are tried in all, in units of the patience: each that is kept renews it.
_TIMES = 4
# Half a decibel: how much less the next mix must be expected to lose after one that failed.
_CAUTION = 10**-0.05


@dataclass(frozen=True)
class Space:
    """The mixes of a model.

    Attributes:
        layers: Its layers.
        ladder: Precisions, the cheapest first.
        costs: What a multiply-accumulate costs in each.
        noise: What a layer loses alone in a precision, as noise power relative to the signal.
    """

    layers: Sequence[Layer]
    ladder: Sequence[str]
    costs: Mapping[str, float]
    noise: Mapping[tuple[str, str], float]

    def mix(self, precisions: Mapping[str, str]) -> Mix:
        """Precisions by layer name in the order of the layers."""
        return tuple(precisions[layer.name] for layer in self.layers)

    def named(self, mix: Mix) -> dict[str, str]:
        """The precisions of a mix by layer name."""
        return {layer.name: precision for layer, precision in zip(self.layers, mix, strict=True)}

    def cost(self, mix: Mix) -> Cost:
        """What a mix costs."""
        pairs = list(zip(self.layers, mix, strict=True))
        return (
            sum(max(layer.macs, 1) * self.costs[precision] for layer, precision in pairs),
            sum(layer.bytes_in(precision) for layer, precision in pairs),
        )

    def expected(self, mix: Mix) -> float:
        """What a mix is expected to lose."""
        return sum(self._noise(layer, precision) for layer, precision in zip(self.layers, mix, strict=True))

    def near(self, mix: Mix) -> Iterator[tuple[Cost, float, Mix]]:
        """Other mixes: cost, expected loss, and the mix; all of them where there are few."""
        if len(self.ladder) ** len(self.layers) <= _ALL:
            for other in itertools.product(self.ladder, repeat=len(self.layers)):
                yield self.cost(other), self.expected(other), other
            return
        (cost, size), loss = self.cost(mix), self.expected(mix)
        moves = [
            (
                place,
                precision,
                max(layer.macs, 1) * (self.costs[precision] - self.costs[mix[place]]),
                layer.bytes_in(precision) - layer.bytes_in(mix[place]),
                self._noise(layer, precision) - self._noise(layer, mix[place]),
            )
            for place, layer in enumerate(self.layers)
            for precision in self.ladder
            if precision != mix[place]
        ]
        pairs = ((one, two) for one, two in itertools.combinations(moves, 2) if one[0] != two[0])
        for chosen in itertools.chain(((move,) for move in moves), pairs):
            changed = list(mix)
            for place, precision, *_ in chosen:
                changed[place] = precision
            yield (
                (cost + sum(move[2] for move in chosen), size + sum(move[3] for move in chosen)),
                loss + sum(move[4] for move in chosen),
                tuple(changed),
            )

    def _noise(self, layer: Layer, precision: str) -> float:
        return self.noise.get((layer.name, precision), 0.0)


def improve(
    space: Space,
    kept: Mix,
    keeps: Callable[[Mix], bool],
    forbidden: Mix | None,
    told: Callable[[int, int], None],
) -> Mix:
    """The cheapest mix found that keeps the budget.

    Args:
        space: All mixes.
        kept: One that keeps it.
        keeps: Whether another does; measures it.
        forbidden: A mix that is no answer, nothing quantized.
        told: Called with how many failed in a row, and how many may.
    """
    patience = _PATIENCE_ALL if len(space.ladder) ** len(space.layers) <= _ALL else _PATIENCE
    best, limit, failed = kept, space.expected(kept), 0
    tried = {kept, forbidden}
    while failed < patience and len(tried) < _TIMES * patience:
        cost = space.cost(best)
        cheaper = [each for each in space.near(best) if each[0] < cost and each[2] not in tried]
        cheaper.sort(key=lambda each: each[1])
        while cheaper and failed < patience and len(tried) < _TIMES * patience:
            trusted = [each for each in cheaper if each[1] <= limit]
            chosen = min(trusted) if trusted else cheaper[0]
            cheaper.remove(chosen)
            _, expected, mix = chosen
            tried.add(mix)
            told(failed, patience)
            if keeps(mix):
                best, limit, failed = mix, max(limit, expected), 0
                break
            limit, failed = limit * _CAUTION, failed + 1
        else:
            break
    return best
