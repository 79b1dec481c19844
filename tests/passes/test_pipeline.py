"""Pipelines are text, and the text round-trips."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from graphwright.ir.errors import PassError, PipelineError
from graphwright.passes.base import Pass
from graphwright.passes.options import options_of
from graphwright.passes.pipeline import Pipeline, as_pipeline, parse_pipeline
from graphwright.passes.registry import _registered, all_names, lookup, register
from hypothesis import given
from hypothesis import strategies as st


@register
@dataclass(frozen=True)
class Sample(Pass):
    """A pass with one option of each kind."""

    name: ClassVar[str] = "test-sample"
    ratio: float = 0.5
    """A fraction."""
    steps: int = 1
    """How many
    times."""
    exact: bool = False
    label: str = ""
    mode: Literal["fast", "slow"] = "fast"
    limit: int | None = None


@register
@dataclass(frozen=True)
class Needy(Pass):
    """A pass with an option that has no default."""

    name: ClassVar[str] = "test-needy"
    amount: int


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("", ""),
        ("eliminate-dead", "eliminate-dead"),
        (" eliminate-dead , eliminate-identity ", "eliminate-dead,eliminate-identity"),
        ("test-sample{}", "test-sample"),
        ("test-sample{ratio=0.5}", "test-sample"),
        ("test-sample{ratio=.25 steps=3}", "test-sample{ratio=0.25 steps=3}"),
        ("test-sample{exact=yes}", "test-sample{exact=true}"),
        ("test-sample{mode=slow limit=7}", "test-sample{mode=slow limit=7}"),
        ("test-sample{limit=none}", "test-sample"),
        ('test-sample{label="a b,{c}=\\"d\\\\"}', 'test-sample{label="a b,{c}=\\"d\\\\"}'),
        ('test-sample{skip="layer[12]\\\\..*"}', 'test-sample{skip="layer[12]\\\\..*"}'),
        ("test-needy{amount=2}", "test-needy{amount=2}"),
    ],
)
def test_text_is_normalized_and_round_trips(text, printed):
    pipeline = parse_pipeline(text)
    assert str(pipeline) == printed
    assert parse_pipeline(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-pass", "there is no pass 'no-such-pass'"),
        ("eliminate-ded", "did you mean 'eliminate-dead'"),
        ("test-sample{ratoi=1}", "no option 'ratoi'; did you mean 'ratio'"),
        ("test-sample{ratio=high}", "option 'ratio' must be a number; got 'high'"),
        ("test-sample{steps=1.5}", "option 'steps' must be a whole number"),
        ("test-sample{exact=maybe}", "option 'exact' must be true or false"),
        ("test-sample{mode=medium}", "must be one of fast, slow"),
        ("test-sample{ratio=1 ratio=2}", "given twice"),
        ("test-sample{ratio}", "expected '=' after option 'ratio'"),
        ("test-sample{ratio=1", "expected an option name or '}' at column 20, found the end"),
        ("eliminate-dead eliminate-identity", "expected ',' between passes at column 16"),
        ("eliminate-dead,", "expected a pass name"),
        ('test-sample{label="x}', "is never closed"),
        ("test-needy", "needs option 'amount'"),
        ("simplify{ratio=1}", "has no option 'ratio'"),
        ("test-sample{skip=[}", "not a regular expression"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(PassError) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_presets_expand_to_their_passes():
    assert [p.name for p in parse_pipeline("simplify")] == [
        "fold-constants",
        "inline-ifs",
        "split-sequences",
        "stabilize",
        "eliminate-dead",
    ]


def test_every_built_in_pass_has_a_purpose_and_help_for_each_option():
    for name in all_names():
        cls = lookup(name)
        if not cls.__module__.startswith("graphwright.passes"):
            continue  # registered by another test
        assert (cls.__doc__ or "").strip(), name
        for option in options_of(cls):
            assert option.help, f"{name}: {option.name}"


def test_options_are_read_off_the_fields():
    options = {option.name: option for option in options_of(Sample)}
    assert list(options) == ["ratio", "steps", "exact", "label", "mode", "limit", "only", "skip"]
    assert options["steps"].help == "How many times."
    assert options["mode"].type == "fast|slow"
    assert options["limit"].type == "int|none"
    assert options["ratio"].default == 0.5


def test_a_pass_name_belongs_to_one_class():
    class Other(Pass):
        """Another pass."""

        name = "test-sample"

    with pytest.raises(PipelineError, match="'test-sample' is taken"):
        register(Other)
    assert _registered["test-sample"] is Sample

    class Impostor(Pass):
        """Claims the name of a built-in pass that may not be imported yet."""

        name = "fold-constants"

    with pytest.raises(PipelineError, match="taken"):
        register(Impostor)


def test_pipelines_are_accepted_in_every_form():
    expected = Pipeline((Sample(ratio=0.1),))
    assert as_pipeline("test-sample{ratio=0.1}") == expected
    assert as_pipeline(Sample(ratio=0.1)) == expected
    assert as_pipeline([Sample(ratio=0.1)]) == expected
    assert as_pipeline(expected) is expected


@given(
    st.builds(
        Sample,
        ratio=st.floats(allow_nan=False),
        steps=st.integers(),
        exact=st.booleans(),
        label=st.text(),
        mode=st.sampled_from(["fast", "slow"]),
        limit=st.none() | st.integers(),
    )
)
def test_any_option_values_survive_text(instance):
    pipeline = Pipeline((instance, Needy(amount=1)))
    assert parse_pipeline(str(pipeline)) == pipeline


def test_a_named_pipeline_hands_its_selectors_to_every_pass():
    members = list(parse_pipeline("simplify{skip=head.* only=Conv}"))
    assert [each.name for each in members] == [each.name for each in parse_pipeline("simplify")]
    assert {(each.only, each.skip) for each in members} == {("Conv", "head.*")}
    assert str(parse_pipeline(str(Pipeline(members)))) == str(Pipeline(members))
