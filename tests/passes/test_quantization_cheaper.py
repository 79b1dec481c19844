"""The search for cheaper mixes of precisions, on losses made up."""

import itertools
import math

import numpy as np
import pytest
from graphwright.passes.quantization import cheaper
from graphwright.passes.quantization.budget import COSTS, Budget, search
from graphwright.passes.quantization.precisions import FLOAT
from graphwright.passes.quantization.trials import Layer, Outcome


def test_a_layer_whose_outputs_are_nan_in_8_bits_stays_out_of_them():
    """Infinite losses keep the search from nothing that others can give."""

    class Broken:
        """Ten layers, of which the third makes NaN of everything in integers."""

        reference = Outcome(math.inf)
        runs = 0

        def layers(self):
            return [Layer(f"l{i}", "Conv", 100 + i, 10) for i in range(10)]

        def outcome(self, precisions):
            if precisions["l2"] != FLOAT:
                return Outcome(math.nan)
            noise = sum({"int8": 1e-3, "a16w8": 1e-5}.get(each, 0.0) for each in precisions.values())
            return Outcome(-10 * math.log10(noise) if noise else math.inf)

    found = search(Broken(), Budget.parse("sqnr>=22dB"), ["int8", "a16w8", FLOAT])
    assert found.precisions["l2"] == FLOAT and found.outcome.sqnr_db >= 22
    assert sorted(found.precisions.values()).count("int8") == 6


@pytest.mark.parametrize("seed", range(6))
def test_many_layers_are_improved_in_pairs(seed, monkeypatch):
    """Losses that are a third off what single layers promise, against all mixes of seven layers."""
    monkeypatch.setattr(cheaper, "_ALL", 0)
    rng = np.random.default_rng(seed)
    ladder = ("int8", "a16w8", FLOAT)
    layers = [Layer(f"l{i}", "Conv", int(macs), 100) for i, macs in enumerate(rng.integers(1, 1000, 7))]
    eight = rng.uniform(0.1, 1.0, 7)
    noise = {(layer.name, "int8"): float(e) for layer, e in zip(layers, eight, strict=True)}
    noise |= {(layer.name, "a16w8"): float(e) / 10 for layer, e in zip(layers, eight, strict=True)}
    space = cheaper.Space(layers, ladder, COSTS, noise)

    def keeps(mix):
        drift = 1 + 0.3 * np.sin(sum(hash_of(p) * (i + 1) for i, p in enumerate(mix)))
        return space.expected(mix) * drift <= 1.0

    def hash_of(precision):
        return ladder.index(precision) + 1

    every = [mix for mix in itertools.product(ladder, repeat=7) if mix != (FLOAT,) * 7]
    least = min(space.cost(mix)[0] for mix in every if keeps(mix))
    start = next(mix for mix in reversed(every) if keeps(mix))
    found = cheaper.improve(space, start, keeps, (FLOAT,) * 7, lambda done, total: None)
    assert keeps(found) and found != (FLOAT,) * 7
    assert space.cost(found)[0] <= 1.2 * least
    assert space.cost(found)[0] < 0.6 * space.cost(start)[0]
    for cost, loss, mix in space.near(found):
        assert cost == space.cost(mix) and loss == pytest.approx(space.expected(mix))
