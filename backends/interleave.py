"""Latency of several executables on the same inputs in one run, taken in turns.

A machine that gets slower for a while (other processes, frequency, heat) then slows all contenders alike, so
that their ratio survives. Within a turn each runs a few times in a row: one run right after another
executable's would find its weights gone from the caches, which is not how a model is served.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from .timing import Timed, Timing, fitting_repeats

TURNS = 8
"""Turns that the runs of one contender are spread over."""
PAUSE_SECONDS = 0.005
"""Between turns: idle worker threads of the previous contender stop spinning."""


def measure_interleaved(
    contenders: Mapping[str, Timed],
    feeds: Mapping[str, Any],
    *,
    threads: int = 1,
    repeats: int | None = None,
    seconds: float = 2.0,
    on_turn: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Median and spread of each contender's single-run latency.

    Args:
        contenders: what to time, by name; a fast set-up call to each has been made by the caller or is made
            here.
        feeds: inputs by name, the same for all.
        threads: threads each may use.
        repeats: runs of each; as many as fit into `seconds` (16 to 400) where None.
        seconds: time to spend on each contender where `repeats` is None.
        on_turn: called with (turn, turns) for progress.
    """
    first = {
        name: exe.benchmark(feeds, threads=threads, repeats=2, warmup=1) for name, exe in contenders.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    counts = {
        name: repeats if repeats is not None else fitting_repeats(timing.min, seconds, least=16, most=400)
        for name, timing in first.items()
    }
    for turn in range(TURNS):
        # Every other turn runs backwards, so that nobody always follows the same neighbour.
        order = list(contenders) if turn % 2 == 0 else list(contenders)[::-1]
        for name in order:
            burst = math.ceil((counts[name] - len(samples[name])) / (TURNS - turn))
            if burst <= 0:
                continue
            time.sleep(PAUSE_SECONDS)
            timing = contenders[name].benchmark(feeds, threads=threads, repeats=burst, warmup=1)
            samples[name].extend(timing.raw)
        if on_turn is not None:
            on_turn(turn + 1, TURNS)
    return {name: Timing.of(values, threads) for name, values in samples.items()}
