from __future__ import annotations

import pytest
from graphwright.backends.timing import Timing
from graphwright.tools.measure import TURNS, measure_interleaved, timing_text


class Fake:
    """Pretends that each run takes `ms` milliseconds and writes down who ran when."""

    def __init__(self, name: str, ms: float, log: list[tuple[str, int]]):
        self.name, self.ms, self.log = name, ms, log

    def benchmark(self, feeds, *, threads, repeats, warmup):
        self.log.append((self.name, repeats))
        return Timing.of([self.ms] * repeats, threads)


def run(repeats: int | None, seconds: float = 1.0):
    log: list[tuple[str, int]] = []
    contenders = {name: Fake(name, ms, log) for name, ms in (("a", 10.0), ("b", 40.0))}
    return measure_interleaved(contenders, {}, threads=2, repeats=repeats, seconds=seconds), log


def test_everyone_runs_as_often_as_asked():
    timings, _ = run(repeats=21)
    assert {name: timing.samples for name, timing in timings.items()} == {"a": 21, "b": 21}
    assert timings["b"].median_ms / timings["a"].median_ms == 4.0
    assert timings["a"].threads == 2


def test_turns_alternate_and_swap_their_order():
    _, log = run(repeats=2 * TURNS)
    turns = [tuple(name for name, _ in log[i : i + 2]) for i in range(2, len(log), 2)]
    assert turns == [("a", "b"), ("b", "a")] * (TURNS // 2)


def test_the_number_of_runs_follows_the_time():
    timings, _ = run(repeats=None, seconds=1.0)
    assert timings["a"].samples == 100
    assert timings["b"].samples == 25


def test_few_repeats_are_honoured():
    timings, _ = run(repeats=1)
    assert timings["a"].samples == 1


@pytest.mark.parametrize(
    ("median", "text"),
    [(0.12345, "0.123 (0.123-0.123)"), (12.3, "12.30 (12.30-12.30)"), (250.4, "250 (250-250)")],
)
def test_digits_shown_follow_the_size(median, text):
    assert timing_text(Timing.of([median], 1)) == text
