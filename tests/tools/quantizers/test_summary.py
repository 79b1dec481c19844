from graphwright.tools.quantizers.rivals import OURS, OURS_ON_ORT, WAYS
from graphwright.tools.quantizers.summary import summary


def record(held_out, sqnr):
    return {"held_out_db": held_out, "sqnr_db": sqnr}


def test_a_line_per_way_with_one_setting_for_all_models():
    first, second = list(WAYS["NNCF"])
    ours = next(iter(WAYS[OURS]))
    records = {
        f"m/{OURS}/{ours}": record(30.0, 31.0),
        f"m/{OURS_ON_ORT}/{next(iter(WAYS[OURS_ON_ORT]))}": record(40.0, 41.0),
        f"m/NNCF/{first}": record(20.0, 28.0),
        f"m/NNCF/{second}": record(25.0, 35.0),
        f"n/NNCF/{first}": record(25.0, -2.0),
        "m/torchao/PT2E": {"error": "no"},
    }
    lines = summary(records, ["m", "n"]).splitlines()
    assert lines[0] == "| SQNR, dB | m | n |"
    assert "| Graphwright, its own kernels | **31.0** | not run |" in lines
    assert "| Graphwright, ONNX Runtime's kernels | 41.0 | not run |" in lines, "another kind of file"
    assert "| NNCF | 28.0 | **-2.0** |" in lines
