from __future__ import annotations

import numpy as np
from graphwright.backends.timing import Timing
from graphwright.passes.optimize import optimize
from graphwright.tools.compile_table import report_files
from graphwright.tools.passes_report import did_lines, timing_lines
from graphwright.tools.steps import Step, StepRecorder, StepTable, markdown_table


def recorded(tiny, pipeline: str) -> StepRecorder:
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    recorder = StepRecorder(tiny, feeds)
    optimize(tiny, pipeline, observers=[recorder])
    return recorder


def test_each_pass_is_a_row_compared_with_the_original(tiny):
    table = recorded(tiny, "eliminate-identity,fold-batch-norm").table
    assert [(step.name, step.nodes) for step in table.steps] == [
        ("original", 7),
        ("eliminate-identity", 6),
        ("fold-batch-norm", 5),
    ]
    identity, folded = table.steps[1:]
    assert identity.comparison is not None and identity.comparison.equal
    assert folded.comparison is not None and 0 < folded.comparison.max_rel <= 1e-5


def test_a_pass_that_changes_nothing_repeats_the_row(tiny):
    first, second = recorded(tiny, "eliminate-identity,eliminate-identity").table.steps[1:]
    assert (first.nodes, first.macs, first.file_bytes) == (second.nodes, second.macs, second.file_bytes)
    assert second.comparison is first.comparison


def test_columns_that_hold_nothing_are_left_out():
    columns, rows = StepTable([Step("original", 3, 1000, None, 2048)]).cells()
    assert columns == ["step", "nodes", "parameters", "file"]
    assert rows == [["original", "3", "1.0 k", "2.0 kB"]]


def test_latencies_get_a_column_per_contender():
    step = Step("compiled", 3, 1000, 10, 2048, latency={"tvm": Timing.of([1.0, 2.0, 3.0], 1)})
    columns, rows = StepTable([Step("original", 3, 1000, 10, 2048), step], metric="accuracy").cells()
    assert columns[-1] == "tvm ms" and "accuracy" not in columns
    assert rows[0][-1] == "-" and rows[1][-1].startswith("2.00 (")


def test_differences_are_shown_for_lossless_steps_and_infinity_has_a_word(tiny):
    table = recorded(tiny, "eliminate-identity,fold-batch-norm").table
    table.steps[-1].lossless = False
    columns, rows = table.cells()
    assert rows[1][columns.index("max diff")] == "0" and rows[1][columns.index("SQNR")] == "exact"
    assert rows[2][columns.index("max diff")] == "-" and rows[2][columns.index("SQNR")].endswith("dB")
    assert table.to_json()["steps"][1]["comparison"]["sqnr_db"] == "inf"


def test_markdown_escapes_what_would_end_a_cell():
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_what_was_left_alone_is_grouped_by_reason(tiny):
    records = [
        {
            "text": "fold-x",
            "statistics": {"folded": 2},
            "changed": True,
            "left_alone": [
                {"op_type": "Conv", "count": 5, "nodes": list("abcde"), "reason": "shared weights"}
            ],
            "notes": ["a note"],
            "check": None,
            "seconds": 0.25,
            "nodes_before": 9,
            "nodes_after": 7,
        }
    ]
    assert did_lines(records) == [
        "fold-x: folded: 2",
        "  left alone: 5 Conv (a, b, c, ...): shared weights",
        "  note: a note",
    ]


def test_times_are_a_tree_with_shares_and_what_is_left_over():
    rules = {
        "name": "rules",
        "seconds": 0.15,
        "count": 1,
        "parts": [{"name": "FoldX", "seconds": 0.1, "count": 40, "fired": 2}],
    }
    tree = {
        "name": "pipeline",
        "seconds": 0,
        "count": 0,
        "parts": [
            {"name": "preparation", "seconds": 0.05, "count": 1},
            {"name": "1 fold-x", "seconds": 0.2, "count": 1, "parts": [rules]},
        ],
    }
    assert timing_lines(tree) == [
        "        ms  share  where",
        "      50.0   20.0%  preparation",
        "     200.0   80.0%  1 fold-x",
        "     150.0   60.0%    rules",
        "     100.0   40.0%      FoldX (40 tries, fired 2 times)",
        "      50.0   20.0%      the rest",
        "      50.0   20.0%    the rest",
        "     250.0  100.0%  total",
    ]


def test_report_files_join_the_table_and_the_compilers_own_report(tiny):
    from graphwright.backends.compile import compile as compile_graph

    executable = compile_graph(tiny, backend="onnxruntime", check=False)
    files = report_files(executable, StepTable([Step("original", 3, 1000, 10, 2048)]))
    assert sorted(files) == ["report.json", "report.md"]
    assert files["report.md"].startswith("# tiny\n")
    assert "| original | 3 | 1.0 k | 10 | 2.0 kB |" in files["report.md"]
