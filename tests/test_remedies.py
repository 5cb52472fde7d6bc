"""Each remedy mends the fault that it is for, and does a healthy network no harm."""

from functools import cache
from pathlib import Path

import pytest
from memory import Memory
from remedied import (
    BITS_OF_THE_HEAD,
    Depthwise,
    Dim,
    Healthy,
    Seam,
    Shifted,
    Spiked,
    Unfused,
    lost,
    outcomes,
)

from qtrack.campaign import run_plan
from qtrack.engine import execute
from qtrack.errors import PipelineError, RecipeError
from qtrack.pipeline import Pipeline, plan_of, read_plan
from qtrack.recipe import Float, Override, Percentile, Recipe, Static
from qtrack.stages import STAGES, Evidence, Judged, Target
from qtrack.statistics import Drop

PIPELINES = Path(__file__).parent.parent / "pipelines"
X86 = Recipe(engine="x86")
CORRECTED = X86.with_transform("correct_bias")
COARSE_HEAD = Override(layer="head", scheme=Static().having(weight={"bits": BITS_OF_THE_HEAD}))
FAULTS = {
    "equalize": (Seam, "equalize", X86),
    "fusion": (Unfused, "fusion", X86.with_weights(granularity="per_channel")),
    "bias_correction": (Shifted, "bias_correction", X86.having(overrides=(COARSE_HEAD,))),
    "calibration": (Dim, {"calibration": {"samples": "all"}}, X86.having(calibration={"samples": 4})),
    "outliers": (
        Dim,
        {"calibration": {"choice": "outlier_inclusive", "name": "outliers"}},
        X86.having(calibration={"samples": 4}),
    ),
    "observers": (Spiked, "observers", X86.with_activations(observer="min_max").keeping_float("head")),
    "reduce_range": (Depthwise, "reduce_range", X86.having(engine="fbgemm")),
    "keep_float": (Seam, {"keep_float": {"layers": ["second", "first"]}}, X86),
}
HARMLESS = {
    **{name: name for name in ("equalize", "bias_correction", "fusion", "observers", "reduce_range")},
    "calibration": {"calibration": {"samples": 32, "choice": "outlier_inclusive"}},
    "training": {"calibration": {"source": "training", "name": "training"}},
    "percentile": {"observers": {"activation": "percentile", "name": "percentile"}},
    "keep_float": {"keep_float": {"layers": ["head"]}},
}


QUICK = ("fusion", "observers")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_a_remedy_mends_most_of_the_fault_that_it_is_for(name):
    task, stage, recipe = FAULTS[name]
    found = outcomes(task(), "ptq", stage, recipe=recipe)
    base, bad, mended = (found[which].value for which in ("float", "ptq", name))
    assert base - bad > 0.04, (base, bad, mended)
    assert lost(found, name).high < 0  # surely better
    assert base - mended < 0.5 * (base - bad), (base, bad, mended)


def test_remedies_do_a_healthy_network_no_harm():
    stages = [{use: {"from": "ptq", **options}} for use, options in map(_entry, HARMLESS.values())]
    found = outcomes(Healthy(), "ptq", *stages)
    for name in HARMLESS:
        loss = lost(found, name)
        assert loss.value < 0.02, name
        assert loss.low <= 0, name


def _entry(stage):
    return next(iter(stage.items())) if isinstance(stage, dict) else (stage, {})


def rewritten(use, recipe=X86, task=None, **options):
    """The outcome that a stage learns from, where there is a task, and the recipe that it makes."""
    outcome = executed(task, recipe) if task else None
    previous = outcome and Judged(outcome, Drop(0.0, 0.0, 0.0, 0.95, 400), None)
    evidence = Evidence(Target(), previous, previous, {}, probe=None)
    return outcome, STAGES[use](recipe, evidence, **options)


@cache
def executed(task, recipe):
    return execute(task(), recipe)


@pytest.mark.parametrize("stage", ["equalize", "bias_correction", "fusion"])
def test_a_transform_that_is_there_already_changes_nothing(stage):
    recipe = X86.having(transforms=("fold_batch_norm", "equalize", "correct_bias"))
    assert rewritten(stage, recipe)[1] == recipe


def test_transforms_go_before_the_one_that_must_be_last():
    _, after = rewritten("equalize", X86.with_transform("correct_bias"))
    assert [transform.kind for transform in after.transforms] == ["equalize", "correct_bias"]


def test_the_best_observers_are_those_of_the_layers_that_gain():
    before, after = rewritten("observers", FAULTS["observers"][2], Spiked)
    gains = {row.layer: (row.percentile_db or 0) - (row.min_max_db or 0) for row in before.layers}
    chosen = {override.layer: override.scheme for override in after.overrides}
    assert chosen.pop("head") == Float()
    assert set(chosen) == {layer for layer, gain in gains.items() if gain >= 1 and layer != "pool"} != set()
    first = chosen["first"]
    assert first == before.recipe.default.having(activation={"observer": first.activation.observer})


def test_a_layers_own_scheme_is_kept_but_for_its_observer():
    own = Static().having(weight={"bits": 5}, activation={"observer": "min_max"})
    recipe = X86.with_activations(observer="min_max").having(overrides=(Override(type="Conv2d", scheme=own),))
    _, after = rewritten("observers", recipe, Spiked)
    (first,) = [override for override in after.overrides if override.layer == "first"]
    assert first.scheme.weight.bits == 5
    assert first.scheme.activation.observer == Percentile()


def test_a_gain_that_is_too_small_changes_nothing():
    _, after = rewritten("observers", FAULTS["observers"][2], Spiked, min_gain_db=99)
    assert after == FAULTS["observers"][2]


def test_one_observer_may_be_asked_for_everywhere():
    _, after = rewritten("observers", activation="moving_average")
    assert after == X86.with_activations(observer="moving_average")


def test_the_best_observers_need_a_stage_to_learn_from():
    with pytest.raises(RecipeError, match="let it start from a stage that quantizes"):
        rewritten("observers")


@pytest.mark.parametrize(
    ("engine", "vnni", "on"),
    [("x86", True, False), ("x86", False, True), ("fbgemm", True, True), ("onednn", False, False)],
)
def test_the_range_is_reduced_where_accumulators_could_overflow(engine, vnni, on, monkeypatch):
    monkeypatch.setattr("qtrack.environment.has_vnni", lambda: vnni)
    _, after = rewritten("reduce_range", X86.having(engine=engine))
    assert after.default.activation.reduce_range is on


def test_calibration_changes_what_is_named_alone():
    start = X86.having(calibration={"samples": 10, "choice": "random"})
    _, after = rewritten("calibration", start, seed=3)
    assert after == start.having(calibration={"samples": 10, "choice": "random", "seed": 3})
    _, after = rewritten("calibration", start, samples="all")
    assert after.calibration.samples is None


class WithoutTraining(Healthy):
    training = None

    def offers(self, method):
        return method != "training" and super().offers(method)


@pytest.mark.parametrize(
    ("stages", "recipe", "asker"),
    [
        ([{"calibration": {"source": "training"}}], X86, r"stages\[0\] \(calibration\)"),
        (["ptq"], X86.having(calibration={"source": "training"}), r"recipe\.calibration\.source"),
    ],
)
def test_calibration_on_training_data_needs_them(stages, recipe, asker):
    pipeline = Pipeline(name="p", task="t:T", recipe=recipe, stages=stages)
    with pytest.raises(PipelineError, match=rf"{asker} needs training\(\), which WithoutTraining lacks"):
        plan_of(pipeline, WithoutTraining())
    plan_of(Pipeline(name="p", task="t:T", stages=["calibration"]), WithoutTraining())


def test_training_after_bias_correction_is_refused_in_one_line():
    class Trainable(Healthy):
        def loss(self, output, batch):
            raise AssertionError

    plan = plan_of(Pipeline(name="p", task="t:T", recipe=CORRECTED, stages=["qat"]), Trainable())
    with pytest.raises(RecipeError, match=r"^stage qat: transforms: correct_bias does not go with training"):
        run_plan(plan, Memory())


@pytest.mark.slow
def test_the_shipped_remedies_mend_what_they_are_for():
    memory = Memory()
    run_plan(read_plan(PIPELINES / "remedies.yaml"), memory)
    value = {stage: kept.outcome.outcome.value for stage, kept in memory.stages.items() if kept.outcome}
    assert value["ptq"] < 0.4
    assert value["float"] - value["equalize"] < 0.01
    assert value["bias_correction"] > value["ptq"] + 0.1
    assert value["fusion"] == value["ptq"]  # torch.ao fuses all that there is
    assert value["calibration"] > value["ptq"]
