"""Recipes are plain data: they survive every format, and say what is wrong with what is not one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtrack.errors import RecipeError
from qtrack.recipe import (
    ActivationSpec,
    Calibration,
    Call,
    Dynamic,
    Float,
    Float16,
    Histogram,
    MinMax,
    Module,
    MovingAverage,
    Override,
    Percentile,
    Recipe,
    Static,
    Torchao,
    Training,
    WeightOnly,
    WeightSpec,
    recipe_from_yaml,
    recipe_to_yaml,
)
from qtrack.recipe_diff import changed_fields, recipe_diff

observers = st.one_of(
    st.just(MinMax()),
    st.builds(MovingAverage, averaging_constant=st.floats(0.001, 1)),
    st.builds(Histogram, bins=st.integers(16, 4096)),
    st.builds(Percentile, quantile=st.floats(0.5, 1)),
)
granularities = st.sampled_from([("per_tensor", None), ("per_channel", None), ("per_group", 32)])
weights = st.builds(
    lambda bits, symmetric, granularity: WeightSpec(
        bits=bits, symmetric=symmetric, granularity=granularity[0], group_size=granularity[1]
    ),
    st.integers(2, 8),
    st.booleans(),
    granularities,
)
activations = st.builds(
    ActivationSpec,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    reduce_range=st.booleans(),
    observer=observers,
)
schemes = st.one_of(
    st.builds(Static, weight=weights, activation=activations),
    st.builds(Dynamic, weight=weights),
    st.builds(WeightOnly, weight=weights),
    st.just(Float16()),
    st.just(Torchao(config={"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": None}})),
    st.just(Float()),
)
names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20)
overrides = st.one_of(
    *(st.builds(Override, scheme=schemes, **{way: names}) for way in ("layer", "glob", "type")),
    *(st.builds(Override, scheme=st.just(Float()), **{way: names}) for way in ("function", "call")),
)
recipes = st.builds(
    Recipe,
    engine=st.sampled_from([None, "x86", "qnnpack"]),
    seed=st.integers(0, 2**63 - 1),
    default=schemes,
    overrides=st.lists(overrides, max_size=3).map(tuple),
    non_traceable=st.lists(names, max_size=2).map(tuple),
    calibration=st.builds(
        Calibration,
        samples=st.none() | st.integers(1, 10_000),
        choice=st.sampled_from(["first", "random", "class_balanced"]),
        seed=st.none() | st.integers(0, 99),
    ),
    transforms=st.sampled_from([(), ("equalize",), ("equalize", "fold_batch_norm", "correct_bias")]),
)


@given(recipes)
def test_a_recipe_survives_yaml(recipe):
    assert recipe_from_yaml(recipe_to_yaml(recipe)) == recipe


@given(recipes)
def test_a_recipe_survives_json(recipe):
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe_from_yaml(json.dumps(recipe.model_dump(mode="json"))).digest == recipe.digest


@given(recipes, recipes)
def test_digests_are_equal_exactly_where_recipes_are(one, other):
    assert (one.digest == other.digest) == (one == other)


def test_digest_does_not_change_between_versions():
    assert Recipe().digest == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    per_channel = Recipe().with_weights(granularity="per_channel").keeping_float("head")
    assert per_channel.digest.startswith("a4fa2291cdbdb185")


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3


def test_variants_may_be_written_as_bare_names():
    recipe = recipe_from_yaml("default: dynamic\noverrides: [{layer: head, scheme: float}]")
    assert recipe == Recipe(default=Dynamic(), overrides=(Override(layer="head", scheme=Float()),))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "defualt: float",
            "plan.yaml: defualt: unknown field; known fields are version, backend, engine, seed, default",
        ),
        (
            "default: {weight: {granularity: channel}, mode: static}",
            "default.weight.granularity: 'channel' is not one of per_tensor, per_channel, per_group",
        ),
        (
            "default: {mode: statik}",
            "default: 'statik' is not one of static, dynamic, weight_only, float16, torchao, float",
        ),
        (
            "default: {mode: static, weight: {bits: 9}}",
            "default.weight.bits: 9: input should be less than or equal to 8",
        ),
        (
            "default: {mode: dynamic, activation: {}}",
            "default.activation: unknown field; known fields are mode, weight",
        ),
        (
            "default: {mode: static, weight: {granularity: per_channel, observer: histogram}}",
            "histogram has no per_channel form",
        ),
        ("default: {mode: static, weight: {observer: moving_average}}", "moving_average needs training"),
        (
            "overrides: [{layer: a, glob: b, scheme: float}]",
            "overrides[0]: name exactly one of layer, glob, type, function, call",
        ),
        (
            "overrides: [{function: add, scheme: dynamic}]",
            "overrides[0]: scheme: a function runs static or float; dynamic is for weights",
        ),
        (
            "default: {mode: weight_only, weight: {granularity: per_group}}",
            "default.weight: group_size: per_group needs it, such as 32",
        ),
        (
            "default: {mode: weight_only, weight: {group_size: 32}}",
            "default.weight: group_size: takes effect with per_group alone, not with per_tensor",
        ),
        ("default: torchao", "default.config: is missing"),
        ("default: float\ntraining: {}", "training: needs a static scheme"),
        ("training: {lr: .nan}", "training.lr"),
        ("seed: 99999999999999999999999", "seed"),
        ("backend: tensorrt", "backend: 'tensorrt' is not one of fx, eager, pt2e, torchao"),
        ("default: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: [", "plan.yaml: line 1, column 5 not valid YAML"),
        ("- 3", "plan.yaml: [3]"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(text, fault):
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml(text, "plan.yaml")
    assert fault in str(error.value)
    assert len(error.value.faults) == 1


def test_all_faults_are_reported_together():
    with pytest.raises(RecipeError) as error:
        recipe_from_yaml("sed: 1\ndefault: {mode: static, weight: {bits: 1, foo: 2}}")
    assert len(error.value.faults) == 3


def lineage(*modules):
    return [Module(name, kind) for name, kind in modules]


def test_the_last_matching_override_wins():
    recipe = Recipe(
        overrides=(
            Override(type="Conv2d", scheme=Float16()),
            Override(glob="blocks.*.project", scheme=Dynamic()),
            Override(layer="blocks.1", scheme=Float()),
        )
    )
    blocks = ("blocks", "Sequential")
    assert recipe.scheme_for(lineage(("stem", "Conv2d"))) == Float16()
    assert recipe.scheme_for(lineage(("head", "Linear"))) == Static()
    assert (
        recipe.scheme_for(lineage(blocks, ("blocks.0", "Block"), ("blocks.0.project", "Conv2d"))) == Dynamic()
    )
    assert (
        recipe.scheme_for(lineage(blocks, ("blocks.1", "Block"), ("blocks.1.project", "Conv2d"))) == Float()
    )


def test_an_override_may_name_a_function_or_one_call_of_it():
    recipe = Recipe(
        overrides=(Override(function="torch.add", scheme=Float()), Override(call="b.add#2", scheme=Static()))
    )
    block = Module("b", "Block")
    assert recipe.scheme_for([block, Call("b.add", "add")]) == Float()
    assert recipe.scheme_for([block, Call("b.add#2", "add")]) == Static()
    assert recipe.scheme_for([block, Call("b.mul", "mul")]) == recipe.default
    assert recipe.scheme_for([block, Module("add", "add")]) == recipe.default


@pytest.mark.parametrize("function", ["add", "torch.add", "_operator.iadd", "__iadd__", "add_"])
def test_a_function_goes_by_its_bare_name(function):
    assert Override(function=function, scheme=Float()).matches(Call("add#3", "add"))


def test_another_granularity_has_no_groups():
    recipe = Recipe(default=WeightOnly(weight=WeightSpec(granularity="per_group", group_size=32)))
    assert recipe.with_weights(granularity="per_channel").default.weight.group_size is None
    assert recipe.with_weights(bits=4).default.weight.group_size == 32


def test_with_weights_reaches_default_and_overrides():
    recipe = Recipe(overrides=(Override(layer="a", scheme=Dynamic()), Override(layer="b", scheme=Float())))
    changed = recipe.with_weights(granularity="per_channel")
    assert [getattr(s, "weight", None) and s.weight.granularity for s in changed.schemes()] == [
        "per_channel",
        "per_channel",
        None,
    ]


def test_a_change_of_mode_keeps_the_weights_specification():
    recipe = Recipe().with_weights(granularity="per_channel").keeping_float("head")
    assert recipe.with_mode("dynamic") == Recipe(
        default=Dynamic(weight=WeightSpec(granularity="per_channel"))
    )
    assert recipe.with_mode("float") == Recipe(default=Float())
    assert not recipe.with_mode("float").quantizes


def test_training_parameters_are_checked_when_changed():
    with pytest.raises(ValueError, match="epochs"):
        Recipe(training=Training()).training.having(epochs=0)


def test_a_diff_shows_only_what_changed():
    ptq = Recipe(engine="x86")
    assert recipe_diff(ptq, ptq, ("ptq", "again")) == "the same recipe as ptq\n"
    assert (
        recipe_diff(ptq.having(seed=7), ptq, ("ptq", "other")) == "--- ptq\n+++ other\n-seed: 0\n+seed: 7\n"
    )
    assert "no earlier stage" in recipe_diff(ptq, None, ("", ""))


def test_changed_fields_stand_beside_each_other_by_path():
    was = Recipe(engine="x86").keeping_float("a", "b")
    now = Recipe(engine="onednn").keeping_float("b", "c").with_activations(bits=7)
    assert changed_fields(was, was) == []
    assert changed_fields(was, now) == [
        ("engine", "x86", "onednn"),
        ("default.activation.bits", "8", "7"),
        ("overrides", "{layer: a, scheme: {mode: float}}", "{layer: c, scheme: {mode: float}}"),
    ]
    dynamic = was.with_mode("dynamic")
    assert ("default.activation.bits", "8", None) in changed_fields(was, dynamic)
    assert ("default.activation.bits", None, "8") in changed_fields(dynamic, was)


def test_of_a_part_that_one_recipe_lacks_each_field_is_a_change():
    ptq = Recipe(engine="x86")
    changes = changed_fields(ptq, ptq.having(training={"epochs": 1}))
    assert changes[0] == ("training.epochs", None, "1")
    assert "training" not in [change.field for change in changes]
