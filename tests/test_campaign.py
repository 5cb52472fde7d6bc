"""Whole pipelines on a tiny model, told to a recorder that remembers."""

import pytest
from memory import Memory
from tiny import Tiny

from qtrack.campaign import run_plan
from qtrack.errors import DataError, RecipeError
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe

EASY = {"max_drop": 0.2}


def run(stages, task=None, **fields):
    memory = Memory()
    pipeline = Pipeline(
        name="p", task="tests", stages=stages, threads=1, target=fields.pop("target", EASY), **fields
    )
    run_plan(plan_of(pipeline, task or Tiny()), memory)
    return memory


def recipes(memory):
    return {name: stage.recipes[0][0] for name, stage in memory.stages.items()}


def test_each_stage_starts_from_the_one_before_and_float_changes_nothing():
    memory = run(["float", "ptq", "per_channel", {"qat": {"epochs": 1}}], recipe={"engine": "x86", "seed": 3})
    found = recipes(memory)
    assert not found["float"].quantizes
    assert found["ptq"] == Recipe(engine="x86", seed=3)
    assert found["per_channel"] == found["ptq"].with_weights(granularity="per_channel")
    assert found["qat"].default.weight.granularity == "per_channel"
    assert memory.stages["ptq"].recipes[0][1] is None
    assert memory.stages["qat"].recipes[0][1] == found["per_channel"]


def test_a_stage_may_start_from_any_before_it():
    found = recipes(
        run(["ptq", "per_channel", {"ptq": {"from": "ptq", "name": "again", "observer": "min_max"}}])
    )
    assert found["again"] == found["ptq"].with_activations(observer="min_max")


def test_the_recipe_that_the_pipeline_starts_from_is_kept_by_ptq():
    start = {"engine": "x86", "default": {"mode": "static", "activation": {"reduce_range": True}}}
    assert recipes(run(["float", {"ptq": {"samples": 32}}], recipe=start))[
        "ptq"
    ].default.activation.reduce_range


def test_ptq_after_qat_no_longer_trains():
    found = recipes(run([{"qat": {"epochs": 1}}, "ptq"]))
    assert found["qat"].training
    assert found["ptq"].training is None


@pytest.mark.parametrize("stage", ["dynamic", "float16", "weight_only"])
def test_modes_are_stages(stage):
    assert recipes(run([stage]))[stage].default.mode == stage


def test_everything_is_judged_against_the_float_model_even_where_no_stage_is_float():
    memory = run(["ptq"])
    assert list(memory.stages) == ["ptq"]
    result = memory.results[0]
    assert not result.baseline.recipe.quantizes
    assert result.judged.drop.value == pytest.approx(result.baseline.value - result.outcome.value)


def test_the_baseline_has_no_drop():
    (result,) = run(["float"]).results
    assert (result.judged.drop.low, result.judged.drop.high, result.judged.meets_target) == (0, 0, True)


def test_a_pipeline_may_stop_at_the_first_stage_that_meets_the_target():
    assert list(run(["float", "ptq", "per_channel"], until="target").stages) == ["float", "ptq"]


def test_loss_curves_reach_the_record():
    points = run([{"qat": {"epochs": 2}}]).stages["qat"].points
    assert [(key, step) for key, _, step in points] == [("train/loss", 1), ("train/loss", 2)]


def test_two_runs_give_equal_results():
    first, second = (run(["float", "ptq", {"qat": {"epochs": 1}}]) for _ in range(2))
    assert [r.outcome.digests for r in first.results] == [r.outcome.digests for r in second.results]


def test_fallback_needs_something_to_learn_from():
    with pytest.raises(RecipeError, match="let it start from a stage that quantizes"):
        run(["fallback"])


def test_a_probe_known_already_costs_nothing():
    seen = []

    def probing(recipe, evidence):
        seen.append(evidence.probe(recipe.having(seed=5)))
        seen.append(evidence.probe(recipe.having(seed=5)))
        return recipe.having(seed=5)

    memory = Memory()
    plan = plan_of(Pipeline(name="p", task="tests", stages=["ptq"], target=EASY), Tiny())
    plan.stages["ptq"] = probing
    run_plan(plan, memory)
    assert seen[0] is seen[1]
    assert len(memory.results[0].probes) == 1


def test_broken_data_are_found_before_any_record_is_opened():
    broken = type("Broken", (Tiny,), {"calibration": lambda self: []})()
    memory = Memory()
    with pytest.raises(DataError):
        run_plan(plan_of(Pipeline(name="p", task="tests", stages=["float"]), broken), memory)
    assert memory.setting is None


def test_a_failing_stage_leaves_what_was_done():
    memory = Memory()
    plan = plan_of(Pipeline(name="p", task="tests", stages=["float", "ptq"], target=EASY), Tiny())

    def failing(recipe, evidence):
        raise RecipeError("no")

    plan.stages["ptq"] = failing
    with pytest.raises(RecipeError):
        run_plan(plan, memory)
    assert {name: stage.status for name, stage in memory.stages.items()} == {
        "float": "FINISHED",
        "ptq": "FAILED",
    }
    assert [result.name for result in memory.results] == ["float"]


def test_a_stage_that_makes_no_valid_recipe_is_told_why():
    plan = plan_of(Pipeline(name="p", task="tests", stages=["ptq"], target=EASY), Tiny())
    plan.stages["ptq"] = lambda recipe, evidence: recipe.with_weights(bits=1)
    with pytest.raises(RecipeError, match="stage ptq: bits: 1: input should be greater than or equal to 2"):
        run_plan(plan, Memory())
