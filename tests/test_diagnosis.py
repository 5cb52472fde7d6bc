"""Diagnoses: which kind of error, from which cause, and what would help."""

import pytest
import torch
from planted import Case, cases, rebuilt
from tiny import Tiny, samples

from qtrack.backends.fx import FxBackend
from qtrack.diagnosis import audit, diagnose
from qtrack.diagnosis.examination import damage
from qtrack.diagnosis.inputs import drift, spread_of
from qtrack.engine import execute
from qtrack.errors import RecipeError
from qtrack.finding import Worked, diagnosis_from
from qtrack.recipe import Recipe
from qtrack.stages import Target

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
RECIPE = Recipe(engine="x86").with_weights(granularity="per_channel")
TARGET = Target(max_drop=0.01)


def batched(images, labels):
    return list(zip(images.split(16), labels.split(16), strict=True))


class Enough(Tiny):
    """With as many calibration samples as the guide asks for."""

    def calibration(self):
        return batched(*samples(128, 2))


def causes(findings):
    return [finding.cause for finding in findings if finding.severity == "fault"]


def test_a_healthy_model_is_called_healthy_and_needs_nothing():
    found = diagnose(Enough(), RECIPE, TARGET, subject="tiny")
    assert (found.category, found.cause, found.remedies) == ("healthy", None, ())
    assert found.legs.both == pytest.approx(found.value, abs=0.01)
    assert diagnosis_from(found.to_dict()) == found


def test_a_kernel_that_is_off_is_an_implementation_error_and_its_layer_is_named(monkeypatch):
    right = FxBackend.convert

    def wrong(self, prepared, example):
        found = right(self, prepared, example)
        if hasattr(found.model.stem, "scale"):
            kernel = found.model.stem.forward
            found.model.stem.forward = lambda x: rebuilt((y := kernel(x)).int_repr().int().roll(1, 1), y)
        return found

    monkeypatch.setattr(FxBackend, "convert", wrong)
    found = diagnose(Enough(), RECIPE, TARGET, subject="tiny")
    assert (found.category, found.cause) == ("implementation", "a kernel that differs from its reference")
    assert found.faults[0].layers == ("stem",)
    first = found.remedies[0]
    assert (first.stage, first.options) == ("keep_float", {"layers": ["stem"]})
    assert execute(Enough(), first.recipe, thorough=False).value > found.float_value - 0.02


def test_one_scale_for_unlike_channels_loses_on_the_side_of_the_weights():
    (case,) = (case for case in cases(["mlp"]) if case.fault == "skewed channels, per-tensor")
    found = diagnose(case.task(), case.recipe, TARGET, subject="mlp")
    assert (found.category, found.cause) == ("data-insensitive", "per-tensor weights")
    assert found.legs.weights < found.legs.activations
    assert found.remedies[0].stage == "per_channel"
    assert {"qat", "fallback"} <= {remedy.stage for remedy in found.remedies}


def test_what_worked_earlier_is_shown_with_its_counts(monkeypatch):
    asked = []

    def worked(cause):
        asked.append(cause)
        return {"keep_float": Worked(2, 3)}

    test_a_kernel_that_is_off_is_an_implementation_error_and_its_layer_is_named(monkeypatch)
    found = diagnose(Enough(), RECIPE, TARGET, subject="tiny", worked=worked)
    assert asked == ["a kernel that differs from its reference"]
    assert found.remedies[0].worked == Worked(2, 3)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE.with_mode("dynamic"),
        RECIPE.with_mode("weight_only"),
        RECIPE.with_mode("float16"),
        Recipe(backend="torchao").with_mode("weight_only").with_weights(granularity="per_channel"),
        Recipe(backend="torchao").with_mode("dynamic").with_weights(granularity="per_channel"),
        Recipe(backend="eager", engine="x86"),
        Recipe(backend="pt2e"),
    ],
)
def test_every_mode_and_backend_can_be_diagnosed(recipe):
    found = diagnose(Enough(), recipe, TARGET, subject="tiny")
    assert found.category == "healthy"
    assert "kernels" in {finding.check for finding in found.findings}


def test_a_recipe_that_quantizes_nothing_is_refused():
    with pytest.raises(RecipeError, match="leaves all in float"):
        diagnose(Enough(), RECIPE.with_mode("float"), TARGET, subject="tiny")


# The audit of the calibration set --------------------------------------------------------------------------


def test_a_good_calibration_set_has_no_fault():
    assert causes(audit(Enough())) == []


def test_a_small_one_is_too_small_by_the_guide():
    (fault,) = (finding for finding in audit(Tiny()) if finding.severity == "fault")
    assert (fault.cause, fault.figures[0].value) == ("too few calibration samples", 64)
    assert "100" in fault.threshold


def calibrated_with(images, labels):
    class Task(Tiny):
        def calibration(self):
            return batched(images, labels)

    return Task()


def test_copies_are_counted_by_content():
    images, labels = samples(16, 2)
    found = audit(calibrated_with(images.repeat(8, 1, 1, 1), labels.repeat(8)))
    assert causes(found) == ["duplicated calibration samples"]


def test_a_class_without_samples_is_named():
    images, labels = samples(256, 2)
    found = audit(calibrated_with(images[labels != 3], labels[labels != 3]))
    assert causes(found) == ["classes without calibration samples"]
    assert any(finding.text.endswith(": 3") for finding in found)


def test_samples_of_the_validation_split_are_found():
    images, labels = (torch.cat(both) for both in zip(samples(100, 2), samples(200, 3), strict=True))
    found = audit(calibrated_with(images[:128], labels[:128]))
    assert causes(found) == ["calibration samples that occur in other splits"]


def test_inputs_of_another_kind_are_told_by_their_distribution():
    images, labels = samples(128, 2)
    found = audit(calibrated_with(3 * images, labels))
    assert causes(found) == ["calibration samples unlike the data"]


def test_layers_that_go_beyond_what_calibration_showed_are_named():
    images, labels = samples(128, 2)
    (beyond,) = (f for f in audit(calibrated_with(images / 4, labels)) if f.check == "calibration ranges")
    assert beyond.severity == "remark"
    assert beyond.layers
    assert beyond.figures[0].value > 2


def test_inputs_without_floating_point_are_not_compared():
    assert drift(spread_of([(torch.ones(3, dtype=torch.long),)]), {}) is None


# Damage ----------------------------------------------------------------------------------------------------


def test_damage_is_the_mean_noise_over_signal_with_lost_samples_counted_once():
    found = damage(torch.tensor([10.0, float("inf"), -30.0, float("nan")]).double().numpy())
    assert found == pytest.approx((0.1 + 0 + 1 + 1) / 4)


# Planted faults --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_what_was_planted_is_named_first(case: Case):
    with case.backend():
        found = diagnose(case.task(), case.recipe, TARGET, subject=case.name)
    assert found.cause in (case.causes or (None,))
    assert case.category in (None, found.category)
    if case.recoverable:
        assert found.remedies


@pytest.mark.slow
def test_outliers_are_named_also_where_no_other_samples_are_at_hand():
    (case,) = (case for case in cases(["mlp"]) if case.fault == "3% outliers that calibration lacks")
    task = case.task()
    task.offers = lambda method: (
        method not in ("training", "loss", "test") and type(task).offers(task, method)
    )
    found = diagnose(task, case.recipe, TARGET, subject="mlp")
    assert "outliers that calibration has not seen" in [fault.cause for fault in found.faults]
    assert "calibration" not in {remedy.stage for remedy in found.remedies}
