"""One execution: what it measures, and what it says of what does not fit."""

import numpy as np
import pytest
import torch
from tiny import Tiny, batches

from qtrack.data import inspect_splits, overlaps
from qtrack.engine import check_forward, execute
from qtrack.errors import DataError, TaskError
from qtrack.recipe import Calibration, Recipe, Training
from qtrack.task import Task

STATIC = Recipe(engine="x86")


class Watching:
    """A monitor that remembers."""

    def __init__(self):
        self.phases = []
        self.points = []

    def phase(self, name, total):
        from contextlib import contextmanager

        @contextmanager
        def entered():
            self.phases.append(name)
            yield lambda done: None

        return entered()

    def report(self, key, value, step):
        self.points.append((key, step))


def test_the_metric_is_the_mean_of_the_samples_scores():
    outcome = execute(Tiny(), STATIC)
    assert outcome.value == pytest.approx(
        (outcome.validation.predictions == outcome.validation.labels).mean()
    )
    assert len(outcome.validation.scores) == 200
    assert len(outcome.test.scores) == 100


def test_a_float_recipe_measures_the_model_as_it_is():
    outcome = execute(Tiny(), STATIC.with_mode("float"))
    assert outcome.layers == ()
    assert outcome.float_layers == ("stem", "block.conv", "head")
    assert outcome.sqnr_db is None
    assert outcome.digests["parameters"] == outcome.digests["float_weights"]
    assert outcome.size_bytes == sum(
        t.numel() * t.element_size() for t in Tiny().model().state_dict().values()
    )


def test_quantized_models_are_smaller_and_timed_beside_the_float_one():
    baseline = execute(Tiny(), STATIC.with_mode("float"))
    outcome = execute(Tiny(), STATIC, baseline)
    assert outcome.size_bytes < baseline.size_bytes / 3
    assert outcome.latency.median_ms > 0
    assert outcome.latency.batch_size == 16
    assert outcome.latency.threads == 1


def test_cost_counts_every_sample_that_went_through_a_model():
    cost = execute(Tiny(), STATIC).cost
    assert cost.forward_samples == 64 + 200 + 100 + 64
    assert cost.evaluations == 1
    assert execute(Tiny(), STATIC, thorough=False).cost.forward_samples == 64 + 200


def test_qat_lowers_the_loss_and_reports_it_by_epoch():
    watching = Watching()
    losses = {}
    watching.report = lambda key, value, step: losses.update({step: value})
    execute(Tiny(), STATIC.having(training=Training(epochs=3)), monitor=watching)
    assert sorted(losses) == [1, 2, 3]
    assert losses[3] < losses[1]


def test_progress_names_each_phase():
    watching = Watching()
    execute(Tiny(), STATIC.having(training=Training(epochs=1)), monitor=watching)
    assert watching.phases == ["calibrate", "train, epoch 1 of 1", "validation", "test", "compare layers"]


def test_progress_knows_how_much_there_is_to_do():
    watching, totals = Watching(), {}
    enter = watching.phase
    watching.phase = lambda name, total: totals.update({name: total}) or enter(name, total)
    recipe = STATIC.having(training=Training(epochs=2), calibration=Calibration(samples=40))
    execute(Tiny(), recipe, monitor=watching, sizes={"calibration": 64, "validation": 200, "test": 100})
    assert totals == {
        "calibrate": 40,
        "train, epoch 1 of 2": None,
        "train, epoch 2 of 2": 128,
        "validation": 200,
        "test": 100,
        "compare layers": 40,
    }


def test_the_worst_layers_bring_their_distributions():
    outcome = execute(Tiny(), STATIC)
    assert outcome.worst_layer.layer in outcome.histograms
    weight_float, weight_int8 = outcome.histograms["stem"].weight
    assert weight_float.counts.sum() == weight_int8.counts.sum() == 72
    assert outcome.histograms["block.add"].weight is None


def variant(**methods):
    return type("Variant", (Tiny,), methods)()


def test_an_empty_calibration_set_is_refused():
    with pytest.raises(DataError, match=r"calibration: Variant.calibration\(\) yields no batch"):
        execute(variant(calibration=lambda self: []), STATIC)
    with pytest.raises(DataError, match=r"calibration: Variant.calibration\(\) yields no batch"):
        inspect_splits(variant(calibration=lambda self: []))


def poisoned(value):
    found = batches(64, 2)
    found[2][0][3, 0, 1, 1] = value
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_data_is_named_with_its_sample(value):
    with pytest.raises(DataError, match="calibration: batch 2: sample 35 holds NaN or infinity"):
        inspect_splits(variant(calibration=lambda self: poisoned(value)))


def test_inputs_of_a_wrong_shape_are_named():
    wrong = variant(calibration=lambda self: [(torch.zeros(4, 3, 6, 6), torch.zeros(4))])
    with pytest.raises(
        DataError, match="the float model refuses calibration batch 0 of shape 4x3x6x6: Given groups=1"
    ):
        check_forward(wrong)


def test_scores_must_be_one_per_sample():
    with pytest.raises(TaskError, match=r"Variant.score\(\) gives 1 numbers for 16 samples"):
        check_forward(variant(score=lambda self, output, batch: output.mean().reshape(1)))


def test_a_score_that_fails_is_the_tasks_fault():
    with pytest.raises(TaskError, match=r"Variant.score\(\) fails: ZeroDivisionError"):
        check_forward(variant(score=lambda self, output, batch: 1 / 0))


def test_a_task_without_labels_needs_its_own_score():
    with pytest.raises(TaskError, match=r"needs its own score\(\)"):
        check_forward(variant(labels=lambda self, batch: None))


def test_a_task_without_labels_may_score_anything():
    task = variant(labels=lambda self, batch: None, score=lambda self, output, batch: -output.abs().mean(1))
    outcome = execute(task, STATIC)
    assert outcome.validation.labels is None
    assert outcome.value < 0


def test_corpus_metrics_stand_beside_the_score():
    outcome = execute(variant(evaluate=lambda self, model, split: {"f1": 0.5}), STATIC)
    assert outcome.validation.extra == {"f1": 0.5}


def test_training_that_yields_nothing_is_refused():
    with pytest.raises(DataError, match=r"Variant.training\(\) yields no batch"):
        execute(variant(training=lambda self: []), STATIC.having(training=Training()))


def test_training_that_diverges_is_refused():
    task = variant(loss=lambda self, output, batch: output.sum() * float("nan"))
    with pytest.raises(DataError, match="the loss is NaN or infinite"):
        execute(task, STATIC.having(training=Training()))


def test_samples_that_stand_in_two_splits_are_counted():
    task = variant(validation=lambda self: batches(64, 2)[:2] + batches(200, 3))
    assert overlaps(inspect_splits(task)) == [
        "calibration and validation share 32 samples: figures on validation flatter"
    ]
    assert overlaps(inspect_splits(Tiny())) == []


def test_splits_are_identified_by_content_and_order():
    digest = inspect_splits(Tiny())["calibration"].digest
    assert inspect_splits(Tiny())["calibration"].digest == digest
    turned = variant(calibration=lambda self: batches(64, 2)[::-1])
    assert inspect_splits(turned)["calibration"].digest != digest
    rebatched = variant(calibration=lambda self: batches(64, 2, size=8))
    assert inspect_splits(rebatched)["calibration"].digest == digest


def chosen(**choice):
    from qtrack.data import calibration_batches

    return [batch[1] for batch in calibration_batches(Tiny(), Calibration(**choice), seed=0)]


def test_calibration_takes_the_first_samples():
    assert [len(labels) for labels in chosen(samples=20)] == [16, 4]
    assert sum(len(labels) for labels in chosen()) == 64
    assert sum(len(labels) for labels in chosen(samples=1000)) == 64


def test_class_balanced_calibration_has_as_many_of_each_class():
    counts = np.bincount(torch.cat(chosen(samples=20, choice="class_balanced")).numpy())
    assert counts.tolist() == [5, 5, 5, 5]


def test_a_batch_without_tensors_is_refused():
    with pytest.raises(DataError, match="holds no tensor with a sample dimension: str"):
        inspect_splits(variant(calibration=lambda self: ["text"]))


def test_keyword_inputs_reach_the_model():
    task = variant(inputs=lambda self, batch: {"x": batch[0]})
    assert execute(task, STATIC).digests == execute(Tiny(), STATIC).digests


def test_reduce_range_is_advised_where_the_processor_could_saturate(monkeypatch):
    monkeypatch.setattr("qtrack.environment.has_vnni", lambda: False)
    assert "x86 can saturate on this processor" in execute(Tiny(), STATIC).warnings[0]
    assert execute(Tiny(), STATIC.with_activations(reduce_range=True)).warnings == ()


def test_optional_methods_say_that_they_are_missing():
    bare = type("Bare", (Tiny,), {"training": Task.training, "loss": Task.loss, "test": Task.test})()
    for method in (bare.training, bare.test, lambda: bare.loss(None, None)):
        with pytest.raises(TaskError, match="Bare has no"):
            method()
    assert execute(bare, STATIC).test is None


class Extreme(Tiny):
    """Sample 37 is far brighter than all others, sample 5 nearly blank."""

    def calibration(self):
        images = torch.cat([images for images, _ in batches(64, 2)])
        images[37] *= 50
        images[5] *= 0.01
        return list(zip(images.split(16), torch.arange(64).split(16), strict=True))


def positions(task=None, seed=0, **choice):
    from qtrack.data import calibration_batches

    found = [batch[1] for batch in calibration_batches(task or Extreme(), Calibration(**choice), seed)]
    return torch.cat(found).tolist()


def test_outlier_inclusive_calibration_is_half_extremes_and_half_chance():
    both, others = (positions(samples=8, choice="outlier_inclusive", seed=seed) for seed in (0, 1))
    assert both == sorted(both)
    assert len(both) == len(others) == 8
    assert {5, 37} < set(both) & set(others)
    assert len(set(both) & set(others)) < 8
    assert positions(samples=8, choice="outlier_inclusive") == both
    assert len(positions(samples=100, choice="outlier_inclusive")) == 64


def test_typical_calibration_leaves_out_the_extremes():
    found = positions(samples=60, choice="typical")
    assert len(found) == 60
    assert not {5, 37} & set(found)


def test_inputs_that_are_all_alike_are_chosen_by_chance():
    alike = variant(inputs=lambda self, batch: (torch.zeros(len(batch[0]), 3, dtype=torch.long),))
    found = [positions(alike, seed=seed, samples=20, choice="outlier_inclusive") for seed in (0, 1)]
    assert found[0] != found[1]


class Drawn(Tiny):
    """Training data that are drawn anew in each pass, from torch's own generator."""

    def training(self):
        for _ in range(3):
            yield torch.randn(16, 1, 6, 6), torch.arange(16)


def test_calibration_on_training_data_is_one_seeded_pass():
    from qtrack.data import calibration_batches

    def seen(seed, **choice):
        found = []
        for images, _ in calibration_batches(Drawn(), Calibration(source="training", **choice), 7, seed):
            torch.rand(5)  # whatever else draws meanwhile
            found.append(images)
        return torch.cat(found)

    torch.manual_seed(3)
    expected = torch.cat([images for images, _ in Drawn().training()])
    assert torch.equal(seen(3), expected)
    assert not torch.equal(seen(4), expected)
    some = seen(3, samples=10, choice="random")
    assert len(some) == 10
    assert all(any(torch.equal(image, other) for other in expected) for image in some)
    before = torch.get_rng_state()
    seen(3)
    torch.rand(0)
    assert len(seen(3, samples=20)) == 20
    assert len(before) == len(torch.get_rng_state())


def test_recipes_that_calibrate_on_training_data_have_them_among_their_ingredients():
    from qtrack.ingredients import recipe_ingredients

    recipe = STATIC.having(calibration=Calibration(source="training"))
    names = recipe_ingredients(Tiny(), recipe)
    assert "data.training.content" in names
    assert "data.training.content" not in recipe_ingredients(Tiny(), recipe.with_mode("float"))
    first, again = execute(Tiny(), recipe, thorough=False), execute(Tiny(), recipe, thorough=False)
    assert first.digests == again.digests != execute(Tiny(), STATIC, thorough=False).digests


def test_training_data_without_a_batch_cannot_calibrate():
    task = variant(training=lambda self: [])
    recipe = STATIC.having(calibration=Calibration(source="training"))
    with pytest.raises(DataError, match=r"training: .*training\(\) yields no batch; calibration needs"):
        execute(task, recipe)
