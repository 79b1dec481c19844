"""The table of recurrent steps with small weights: what it measures, and what it refuses."""

import pytest
import typer
from graphwright.tools import recurrent_bench


def test_rows_hold_times_sizes_and_distances():
    rows = list(recurrent_bench.measure("GRU", 64, ["int8", "int4"], [1], 1, "host", 2))
    assert [row.form for row in rows] == ["float", "int8", "int4"]
    assert all(0 < row.microseconds[0] <= row.microseconds[2] for row in rows)
    assert rows[0].speedup == rows[0].share == 1.0 and rows[0].sqnr == float("inf")
    assert rows[1].sqnr > rows[2].sqnr + 10 > 20
    assert rows[2].share < rows[1].share < 1.0
    assert len(rows[1].cells()) == len(recurrent_bench.COLUMNS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cell": "Elman"}, "--cell Elman: there are LSTM, GRU, RNN"),
        ({"hidden": "256,x"}, "--hidden 256,x: give numbers"),
        ({"threads": "0"}, "--threads 0: give numbers"),
        ({"batch": 0}, "--batch and --repeats must be at least 1"),
        ({"forms": "int9"}, "int9"),
        ({"target": "abacus"}, "abacus"),
    ],
)
def test_bad_options_are_refused(given, message, capsys):
    with pytest.raises(typer.Exit) as raised:
        recurrent_bench.main(**given)
    line = capsys.readouterr().err
    assert raised.value.exit_code == 2 and message in line and line.count("\n") == 1
