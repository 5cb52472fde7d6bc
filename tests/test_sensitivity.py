"""Rankings, harm and the order of elimination, against other ways to the same numbers."""

import math
from functools import cache
from pathlib import Path

import pytest
from tiny import Tiny, WithoutTraining

from qtrack.engine import execute
from qtrack.monitor import SILENT
from qtrack.recipe import Float, Override, Recipe
from qtrack.sensitivity import Sensitivity
from qtrack.sensitivity.elimination import eliminated
from qtrack.task import load_task

FX = Recipe(engine="x86")
SAMPLES = 64
PIPELINES = Path(__file__).resolve().parents[1] / "pipelines"


@cache
def sensitivity(task=Tiny):
    return Sensitivity(task(), FX)


@cache
def ranking(task=Tiny):
    return sensitivity(task).exact(sensitivity(task).ranking)


def only(name):
    """The recipe with this one layer or call quantized."""
    calls = {"block.add"}
    others = set(sensitivity().board.layers) - {name}
    ways = ({"call" if other in calls else "layer": other} for other in sorted(others))
    return FX.having(overrides=tuple(Override(scheme=Float(), **way) for way in ways))


def test_own_is_the_own_share_of_the_layer_table():
    rows = {row.layer: 10 ** (-row.own_sqnr_db / 10) for row in execute(Tiny(), FX).layers}
    assert {share.layer: share.own for share in ranking().shares} == pytest.approx(rows, rel=1e-5)


@pytest.mark.parametrize("name", ["stem", "block.conv", "block.add", "pool", "head"])
def test_alone_gives_the_score_of_the_model_with_that_layer_alone_quantized(name):
    scores = sensitivity().scores_alone("validation")
    assert scores[name] == execute(Tiny(), only(name), thorough=False).validation.scores.mean()


def test_alone_and_back_are_harm_where_the_task_has_no_loss():
    found = sensitivity(WithoutTraining)
    every = set(found.board.layers)
    for share in ranking(WithoutTraining).shares:
        assert share.alone == pytest.approx(found.harm(every - {share.layer}), rel=1e-6)
        assert share.back == pytest.approx(found.harm(()) - found.harm({share.layer}), abs=1e-9)


def test_without_a_loss_no_loss_is_ranked():
    assert ranking(WithoutTraining).measures() == ("own", "output", "alone", "back")
    assert ranking(WithoutTraining).correlation("loss", "alone") is None
    assert "loss" in ranking().measures()


def test_harm_is_the_rise_of_the_loss_where_there_is_one():
    assert sensitivity().harm(sensitivity().board.layers) == pytest.approx(0, abs=1e-6)
    assert sensitivity().harm(()) != pytest.approx(sensitivity(WithoutTraining).harm(()), rel=0.1)


def test_the_sweep_counts_two_forwards_for_each_sample():
    found = sensitivity().ranking
    assert (found.samples, found.forward_samples) == (SAMPLES, 2 * SAMPLES)


def test_the_exact_mode_counts_parts_of_forwards():
    extra = ranking().forward_samples - 2 * SAMPLES
    assert 3 * SAMPLES < extra < 2 * len(ranking().shares) * SAMPLES


def test_scores_of_samples_are_those_of_the_converted_model():
    kept = execute(Tiny(), FX.keeping_float("stem"), thorough=False).validation.scores
    found = sensitivity().scores({"stem"}, [3, 40, 199])
    assert found.tolist() == kept[[3, 40, 199]].tolist()


def test_a_layer_order_holds_the_layers_that_have_a_cost():
    assert set(sensitivity().order({"stem": 1.0, "head": 1.0})) == {"stem", "head"}


def test_what_is_switched_together_stands_under_one_name():
    assert sensitivity().order({"stem": 1.0}, {"stem": frozenset({"stem", "head"})}) == ("stem",)


def test_layers_are_ranked_worst_first():
    shares = {share.layer: share.output for share in ranking().shares}
    assert list(ranking().by("output")) == sorted(shares, key=shares.__getitem__, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "resnet", "transformer"])
def test_the_sweep_ranks_as_the_exact_mode_does(name):
    found = Sensitivity(load_task(f"{name}.py:{name.capitalize()}", PIPELINES), FX)
    assert found.exact(found.ranking).correlation("output", "alone") >= 0.8


# Elimination ------------------------------------------------------------------------------------------------


def order(costs, harm):
    with SILENT.phase("order", None) as advance:
        return "".join(eliminated(costs, harm, lambda off: None, advance))


def additive(**harms):
    """Harm of a mixture, from what is in float: the sum over all others."""
    return lambda off: sum(value for name, value in harms.items() if name not in off)


def even(names):
    return dict.fromkeys(names, 1.0)


def test_where_harm_adds_up_the_order_is_that_of_harm():
    assert order(even("abcd"), additive(a=2, b=4, c=1, d=3)) == "bdac"


def test_harm_is_weighed_by_cost():
    # a: 2/1, b: 4/4, c: 1/0.25, d: 3/6
    assert order({"a": 1, "b": 4, "c": 0.25, "d": 6}, additive(a=2, b=4, c=1, d=3)) == "cabd"


def test_of_layers_that_do_no_harm_the_dearest_goes_first():
    assert order({"a": 1, "b": 3, "c": 2}, lambda off: float(len(off))) == "acb"


def test_layers_that_only_help_together_stay_together():
    def harm(off):  # a and b spare 5 where both are in float; c spares 1, d spares 2
        return (0 if {"a", "b"} <= off else 5) + (0 if "c" in off else 1) + (0 if "d" in off else 2)

    assert set(order(even("abcd"), harm)[:2]) == {"a", "b"}
    assert order(even("abcd"), harm)[2:] == "dc"


def test_a_layer_whose_going_gives_no_number_is_needed_most():
    def harm(off):
        return math.nan if "b" not in off else additive(a=2, b=0, c=1)(off)

    assert order(even("abc"), harm) == "bac"


def test_with_harm_that_is_never_a_number_all_layers_are_ordered():
    assert sorted(order(even("abc"), lambda off: math.nan)) == ["a", "b", "c"]


def test_no_layers_have_an_order():
    assert order({}, lambda off: 0.0) == ""


def test_only_those_that_lead_are_asked_again():
    asked = []

    def harm(off):
        asked.append(off)
        return additive(a=2, b=4, c=1, d=3)(off)

    order(even("abcd"), harm)
    assert (
        len(asked) == 1 + 4 + 4 + 3
    )  # at first, each layer once, after each step, and each leader once more


def test_a_loss_that_calibration_batches_do_not_fit_is_not_used(caplog):
    class Unlabelled(Tiny):
        def calibration(self):
            return [(images, None) for images, _ in super().calibration()]

        def labels(self, batch):
            return batch[1]

    found = Sensitivity(Unlabelled(), FX)
    assert {share.loss for share in found.ranking.shares} == {None}
    assert 0 < found.harm(()) < 1
    assert "loss() does not take calibration batches" in caplog.text
