import pytest
import typer
from graphwright.backends.timing import Timing
from graphwright.tools import int8_bench
from graphwright.tools.int8_bench import (
    FLOAT_TVM,
    INT4,
    INT8,
    MODELS,
    ORT,
    ORT_FLOAT,
    Row,
    known_models,
    markdown,
)


def row(name, milliseconds, sizes):
    times = zip((INT8, FLOAT_TVM, ORT, ORT_FLOAT), milliseconds, strict=True)
    timings = {(contender, 1): Timing.of([each], 1) for contender, each in times}
    return Row(name, 40.0, dict(zip((INT8, INT4, FLOAT_TVM), sizes, strict=True)), (3, 0), timings)


def test_the_table_shows_ratios_shares_and_the_mean():
    rows = [row("a", (2, 8, 3, 9), (26, 15, 100)), row("b", (1, 2, 6, 3), (50, 30, 200))]
    text = markdown(rows, [1])
    first = next(line for line in text.splitlines() if line.startswith("| a "))
    assert "| 4.00 | 1.50 | 26.0% | 15.0% | 40.0 dB | 3 integer, 0 float |" in first
    # The mean of 1.5 and 6 is 3, geometrically.
    assert text.rstrip().endswith("1 thread: 3.00")
    assert "zero tuning trials" in text and "32 tuning trials" in markdown(rows, [1], 32)


def test_every_model_of_the_benchmark_can_be_built():
    assert set(MODELS) <= set(known_models())


def test_a_pattern_without_a_model_ends_in_one_line(capsys):
    with pytest.raises(typer.Exit) as caught:
        int8_bench.main(
            only="resnet19", threads="1", seconds=1.0, target="x86", table="x86-vnni", trials=0, output=None
        )
    assert caught.value.exit_code == 2
    assert "resnet19" in capsys.readouterr().err
