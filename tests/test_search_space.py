"""What a recipe leaves open, as plain data that leads back to recipes."""

import json
from itertools import product

import pytest

from qtrack.backends.capabilities import faults
from qtrack.errors import RecipeError
from qtrack.recipe import Recipe
from qtrack.search.space import has_same_choices, plain_space, point_of, recipe_at, space_of
from qtrack.stages import STAGES

PTQ = Recipe(engine="x86")
QAT = STAGES["qat"](PTQ, None, epochs=2, freeze_observers=1)
LAYERS = PTQ.with_activations(observer={"kind": "percentile", "quantile": 0.9}).keeping_float("head")
STARTS = {
    "ptq": PTQ,
    "qat": QAT,
    "layers": LAYERS,
    "pt2e": Recipe(backend="pt2e"),
    "dynamic": PTQ.with_mode("dynamic"),
    "equalized": PTQ.with_transform("equalize"),
    "groups": Recipe(backend="torchao")
    .with_mode("weight_only")
    .with_weights(granularity="per_group", group_size=32),
}


def names(recipe, parts=None):
    return [choice.name for choice in space_of(recipe, parts)]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_start_is_a_point_that_leads_back_to_it(start):
    space = space_of(start)
    params = point_of(space, start, start)
    assert recipe_at(space, start, params) == start
    assert json.loads(json.dumps(params)) == params
    assert [choice.values[0] for choice in space] == [choice.read(start) for choice in space]


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_every_value_by_itself_is_a_recipe_that_the_backend_carries_out_and_reads_back(start):
    for choice in space_of(start):
        for value in choice.values:
            recipe = recipe_at((choice,), start, {choice.name: value})
            assert choice.read(recipe) == value
            assert faults(recipe) == []


def test_equal_params_make_equal_recipes():
    space = space_of(PTQ, ["observer", "granularity"])
    params = {"granularity": "per_channel", "observer": "percentile", "quantile": 0.999}
    first, second = (recipe_at(space, PTQ, dict(params)) for _ in range(2))
    assert first.digest == second.digest
    assert first.default.activation.observer.quantile == 0.999
    assert first.default.weight.granularity == "per_channel"
    assert point_of(space, first, PTQ) == params


def test_post_training_recipes_have_these_choices():
    assert names(PTQ) == [
        *("granularity", "equalize", "observer", "quantile", "averaging_constant", "samples", "choice"),
        *("reduce_range", "bias_correction"),
    ]


def test_training_recipes_choose_how_to_train_and_correct_no_bias():
    found = names(QAT)
    assert found[-5:] == ["epochs", "lr", "schedule", "freeze_observers", "freeze_bn_stats"]
    assert "bias_correction" not in found
    epochs = next(choice for choice in space_of(QAT) if choice.name == "epochs")
    assert epochs.values == (2, 1, 4)


def test_a_dynamic_recipe_has_no_ranges_to_choose():
    assert names(PTQ.with_mode("dynamic")) == ["granularity", "equalize", "bias_correction"]


def test_an_engine_without_reduced_ranges_does_not_choose_them():
    assert "reduce_range" not in names(Recipe(engine="qnnpack"))


def test_a_choice_that_takes_no_effect_is_not_part_of_a_point():
    space = space_of(PTQ)
    assert {"quantile", "averaging_constant", "choice"}.isdisjoint(point_of(space, PTQ, PTQ))
    fewer = PTQ.having(calibration={"samples": 16, "choice": "random"})
    assert point_of(space, fewer, PTQ)["choice"] == "random"


def test_what_the_space_does_not_hold_stays_as_in_the_start():
    other = PTQ.with_weights(granularity="per_channel").having(calibration={"samples": 17})
    point = point_of(space_of(PTQ), other, PTQ)
    assert (point["granularity"], point["samples"]) == ("per_channel", None)


def test_recipes_of_another_kind_have_other_choices():
    same = [name for name, recipe in STARTS.items() if has_same_choices(recipe, PTQ)]
    assert same == ["ptq", "layers", "equalized"]


def test_a_combination_that_is_no_recipe_is_none():
    start = PTQ.with_weights(observer="histogram")
    assert "granularity" not in names(start)  # histograms have no form per channel
    space = space_of(PTQ, ["granularity"])
    assert recipe_at(space, start, {"granularity": "per_channel"}) is None


def test_all_points_of_two_parts_are_recipes_of_their_own():
    space = space_of(PTQ, ["granularity", "equalize"])
    points = product(*(choice.values for choice in space))
    recipes = {recipe_at(space, PTQ, dict(zip(["granularity", "equalize"], p, strict=True))) for p in points}
    assert len({recipe.digest for recipe in recipes}) == 4


def test_a_space_is_plain_data():
    assert plain_space(space_of(PTQ, ["granularity"])) == [["granularity", "per_tensor", "per_channel"]]


@pytest.mark.parametrize(
    ("recipe", "parts", "message"),
    [
        (PTQ.with_mode("float"), None, "there is nothing to search: start from a stage that quantizes"),
        (PTQ, ["training"], "space: training cannot be chosen here; this recipe leaves open granularity, eq"),
        (PTQ, [], "space: it is empty; this recipe leaves open granularity"),
        (
            Recipe(backend="torchao", default={"mode": "torchao", "config": {}}, transforms=["equalize"]),
            ["observer"],
            "space: observer cannot be chosen here",
        ),
    ],
)
def test_a_space_without_choices_is_refused(recipe, parts, message):
    with pytest.raises(RecipeError, match=message):
        space_of(recipe, parts)
