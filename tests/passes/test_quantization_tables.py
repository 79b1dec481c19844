"""The target tables: data that is consistent, found by name, file or target."""

import dataclasses
import json

import numpy as np
import pytest
from graphwright.backends.target import all_targets, resolve_target
from graphwright.ir.errors import PassError
from graphwright.passes.quantization.tables import TABLES, Table, find_table, table_from_json


def test_every_table_has_a_purpose_and_an_anchor():
    for name, table in TABLES.items():
        assert table.name == name
        assert table.purpose and "\n" not in table.purpose
        assert {"Conv", "Gemm", "MatMul"} <= set(table.weighted)


def test_reduced_range():
    assert TABLES["x86"].weight_grid(None).high == 64
    assert TABLES["x86"].weight_grid(False).high == 127
    assert TABLES["x86-vnni"].weight_grid(None).high == 127
    assert TABLES["x86-vnni"].weight_grid(True).high == 64


@pytest.mark.parametrize("name", ["arm", "arm-dotprod"])
def test_arm_sums_of_two_products_fit_16_bits(name):
    table = TABLES[name]
    largest = 2 * max(-table.activations.grid.low, table.activations.grid.high) * table.weight_grid(None).high
    assert largest <= np.iinfo(np.int16).max


@pytest.mark.parametrize("name", TABLES)
def test_tables_survive_json(name):
    data = json.loads(json.dumps(TABLES[name].to_json()))
    assert table_from_json(data) == TABLES[name]


def test_tables_from_files(tmp_path):
    data = TABLES["generic"].to_json()
    del data["name"]
    data["activations"] = {"dtype": "int8", "symmetric": True}
    (tmp_path / "mine.json").write_text(json.dumps(data))
    table = find_table(str(tmp_path / "mine.json"))
    assert table.name == "mine" and table.activations.grid.low == -127


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"activations": {"dtype": "float32"}}, "activations must be uint8, int8, .*, not float32"),
        ({"activations": {"dtype": "int8", "bits": 12}}, "int8 cannot hold 12 bits"),
        ({"activations": {"dtype": "int4"}}, "activations must be uint8, int8, uint16"),
        ({"weights": {"dtype": "uint16"}}, "weights must be int8, uint8, int16"),
        ({"weights": {"dtype": "float8_e4m3fn", "symmetric": False}}, "is symmetric, it has no zero point"),
        ({"activations": {"dtype": "float8_e5m2", "bits": 7}}, "has no use for a number of bits"),
        (
            {"weights": {"dtype": "int4"}, "reduced_weight_bits": 3},
            "reduced_weight_bits is for 8-bit weights",
        ),
        ({"weighted": {"Conv": {"weights": {"dtype": "int9"}}}}, "weights must be int8, .*, not int9"),
        ({"weighted": {"Conv": {"weights": 3}}}, "'Conv' of 'weighted' must be an object, such as"),
        ({"activations": "int8"}, """'activations' must be an object, such as {"dtype": "uint8","""),
        ({"weights": {"symmetric": "yes"}}, "'symmetric' must be true or false, not \"yes\""),
        ({"weights": {"bits": "many"}}, "contradicts itself"),
        ({"keeps_float": ["Softmax"]}, "'keeps_float' must be an object, such as"),
        ({"computed": "Add"}, "'computed' must be a list of names"),
        ({"tails": {"Relu": True}}, "'tails' must be a list of names"),
        ({"weighted": {"Conv": {"min_channels": 0}}}, "min_channels of 'Conv' is 0, not 1 or more"),
        ({"first_layer": "maybe"}, "first_layer is 'maybe', not 'quantize' or 'float'"),
        ({"precisions": ["int5"]}, "there is no precision 'int5'"),
        ({"reduced_weight_bits": 1}, "cannot hold 1 bits"),
        ({"computed": ["Add", "Conv"], "weighted": {"Conv": {}}}, "lists 'Conv' under two headings"),
        ({"computed": ["Gelu"]}, "'Gelu' cannot be computed, only Add"),
        ({"weighted": {"LSTM": {}}}, "'LSTM' cannot be weighted, only Conv"),
        ({"colour": "blue"}, "colour"),
        ({"weighted": {"Conv": {"axis": 1}}}, "axis"),
        ({"weighted": ["Conv"]}, "'weighted' must be an object, such as"),
        ({"weighted": {"Conv": {"result": "maybe"}}}, "result of 'Conv' is 'maybe'"),
        ({}, "'weighted' names nothing"),
        ({"weighted": {"Conv": {}}, "precisions": []}, "'precisions' names nothing"),
        (
            {"weighted": {"Conv": {"axis": 3}}},
            "'Conv' of 'weighted' has an unknown entry 'axis'; entries are: res",
        ),
        ({"weighted": {"Conv": {"per_channel": "yes"}}}, "'per_channel' must be true or false, not \"yes\""),
        ({"weighted": {"Conv": {"weights": {"size": 8}}}}, "'weights' of 'Conv' has an unknown entry 'size'"),
        ({"activations": {"dtype": "int8", "signed": True}}, "'activations' has an unknown entry 'signed'"),
        ({"name": 5, "weighted": {"Conv": {}}}, "'name' must be a text"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, change, line):
    (tmp_path / "bad.json").write_text(json.dumps(change))
    with pytest.raises(PassError, match=line) as caught:
        find_table(str(tmp_path / "bad.json"))
    assert "\n" not in str(caught.value)


def test_missing_tables_and_files(tmp_path):
    with pytest.raises(PassError, match=r"no quantization table 'x87'; tables: x86, x86-vnni, .*json"):
        find_table("x87")
    with pytest.raises(PassError, match="cannot read the quantization table"):
        find_table(str(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(PassError, match="is not a JSON object"):
        find_table(str(tmp_path / "list.json"))


def test_targets_find_their_table():
    assert find_table(None).name == "generic"
    assert find_table(None, "arm").name == "arm"
    assert find_table(None, "toaster").name == "generic"
    assert find_table("cuda", resolve_target("arm")).name == "cuda"
    assert find_table(None, resolve_target("cuda")).name == "cuda"
    arm = resolve_target("arm")
    assert find_table(None, dataclasses.replace(arm, features=("neon",))).name == "arm"
    assert find_table(None, dataclasses.replace(arm, features=("neon", "dotprod"))).name == "arm-dotprod"
    x86 = dataclasses.replace(resolve_target("x86"), triple="x86_64-linux-gnu")
    assert find_table(None, dataclasses.replace(x86, features=("avx2",))).name == "x86"
    assert find_table(None, dataclasses.replace(x86, features=("avx2", "avx512vnni"))).name == "x86-vnni"
    for target in all_targets():
        assert isinstance(find_table(None, target), Table)


def test_an_unknown_entry_is_named_with_those_there_are():
    with pytest.raises(
        PassError, match=r"table 'mine' has an unknown entry 'wheels'; entries are: name, "
    ) as caught:
        table_from_json({**TABLES["generic"].to_json(), "name": "mine", "wheels": 4})
    assert len(str(caught.value).splitlines()) == 1
