"""The engine's own benchmark: it measures what it says, on graphs that are what it says."""

import math

import pytest
from graphwright.tools.engine_bench import EngineCost, growth, measure_engine, simplifying_rules


def test_it_measures_sweeps_and_rewrites():
    cost = measure_engine(200, repeat=1)
    assert 150 <= cost.nodes <= 260
    assert cost.rules == len(simplifying_rules()[1]) > 20
    # Four rewrites per block of nineteen nodes are left once the constants are folded.
    assert cost.rewrites >= 40
    assert 0 < cost.sweep < 5000
    assert 0 < cost.rewrite < 50_000
    assert cost.to_json()["nodes"] == cost.nodes


def test_growth_is_an_exponent():
    costs = [EngineCost(n, 1, 2.0, n, 3.0 * n) for n in (10, 100, 1000)]
    assert growth(costs) == (pytest.approx(1.0), pytest.approx(2.0))
    assert all(math.isnan(exponent) for exponent in growth(costs[:1]))
