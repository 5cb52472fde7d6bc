"""What differs between two recorded runs, and which of it moved the metric."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import tiny
import torch
from recorded_tiny import PLANTED, artifact, batches_with, command, edited, one_ulp, reordered, replaced

import qtrack
from qtrack import Ledger
from qtrack.api import diff, explain
from qtrack.campaign import run_plan
from qtrack.difference import shift
from qtrack.errors import InputError, RunNotFound
from qtrack.explanation import RECIPE_PARTS, Skipped, recipe_swaps
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe
from qtrack.report.difference import difference as table_of
from qtrack.statistics import paired_drop

pytest_plugins = ("recorded_campaign",)


PTQ = Recipe(engine="x86")
COARSE = {"mode": "static", "weight": {"bits": 2}, "activation": {"bits": 2}}


def recorded(*recipes, task=None, **fields):
    """Ids of runs that execute these recipes, each in a campaign of its own."""
    return [_recorded(recipe, task or tiny.Tiny(), fields) for recipe in recipes]


def _recorded(recipe, task, fields):
    pipeline = Pipeline(name="p", task="tiny_task.py:Mine", recipe=recipe, stages=["recipe"], **fields)
    run_plan(plan_of(pipeline, task), Ledger.open(), fresh=True)
    return Ledger.open().strategies()[-1].run_id


@pytest.fixture
def runs(folder):
    """Ids of the campaign's runs by stage, whatever was recorded after them."""
    return {strategy.stage: strategy.run_id for strategy in Ledger.open().finished("tiny")[:3]}


@pytest.fixture(scope="module")
def known(campaign):
    """Ids of runs with 8 bits, with 2 bits, and with a seed that has no effect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(campaign[0])
        return recorded(PTQ, PTQ.having(default=COARSE), PTQ.having(seed=1))


@pytest.fixture
def plain(known, folder):
    return known[0]


@pytest.fixture
def coarse(known, folder):
    return known[:2]


@pytest.fixture
def seeds(known, folder):
    return known[::2]


def ingredient(name, value):
    return lambda data: data["ingredients"].update({name: value})


def flat(text):
    return [" ".join(line.split()) for line in text.splitlines()]


# equal


def test_a_run_and_its_repetition_are_equal_in_one_line(runs):
    (again,) = recorded(PTQ, task=qtrack.task.load_task("tiny_task.py:Mine"))
    done = command("diff", runs["ptq"], again)
    assert done.exit_code == 0, done.output
    assert done.stdout == "ptq and recipe are equal in everything (200 validation samples)\n"
    assert command("diff", runs["ptq"], runs["ptq"], "--explain").stdout.count("\n") == 1
    found = json.loads(command("diff", runs["ptq"], again, "--json").stdout)
    assert found["equal"] is True
    assert found["recipe"] == found["layers"] == found["flips"] == []


# each difference stands in its group, and nowhere else


GROUPS = {"data": "data", "float_weights": "weights", "source": "code"}


@pytest.mark.slow
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_difference_is_named_in_its_group_and_nothing_else(plain, what):
    plant, name = PLANTED[what]
    recipe = PTQ.having(training={"epochs": 1}) if "training" in name else PTQ
    before = plain if recipe == PTQ else recorded(recipe)[0]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        (after,) = recorded(recipe)
    found = diff(before, after)
    group = GROUPS.get(name.partition(".")[0], "environment")
    differ = {key: [drift.name for drift in part.differ] for key, part in found.ingredients.items()}
    assert {key: names for key, names in differ.items() if names} == {group: [name]}
    assert found.recipe == found.unrecorded == ()
    assert not found.equal


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("version.torch", "environment"),
        ("cpu.model", "environment"),
        ("threads", "environment"),
        ("engine", "environment"),
        ("source.model", "code"),
        ("source.task", "code"),
    ],
)
def test_a_record_from_elsewhere_is_named_in_its_group(runs, name, group):
    (again,) = recorded(PTQ)
    with edited(artifact(again, "fingerprint.json"), ingredient(name, "old")):
        found = diff(again, runs["ptq"])
    here = [drift for drift in found.drifts if drift.name == name]
    assert [drift.was for drift in here] == ["old"]
    assert here[0] in found.ingredients[group].differ


def test_a_recipe_differs_field_by_field_and_its_engine_is_no_ingredient_of_its_own(plain):
    (after,) = recorded(PTQ.having(engine="onednn", seed=3).with_weights(granularity="per_channel"))
    found = diff(plain, after)
    assert found.recipe == (
        ("engine", "x86", "onednn"),
        ("seed", "0", "3"),
        ("default.weight.granularity", "per_tensor", "per_channel"),
    )
    assert found.drifts == found.unrecorded == ()


@pytest.mark.slow
def test_training_data_counts_only_where_both_train_and_its_order_only_with_the_same_seed(runs):
    assert diff(runs["ptq"], runs["qat"]).drifts == diff(runs["qat"], runs["ptq"]).drifts == ()
    training = PTQ.having(training={"epochs": 1})
    before, after = recorded(training, training.having(seed=1))
    assert diff(before, after).drifts == ()


@pytest.mark.slow
def test_a_split_that_came_is_a_difference_of_the_data(plain, monkeypatch):
    monkeypatch.setattr(tiny.Tiny, "test", qtrack.Task.test)
    (without,) = recorded(PTQ)
    expected = ["data.test.content", "data.test.batches"]
    assert [drift.name for drift in diff(plain, without).drifts] == expected
    assert [drift.name for drift in diff(without, plain).drifts] == expected


@pytest.mark.slow
def test_what_an_old_record_does_not_hold_is_not_recorded(runs):
    def older(data):
        del data["ingredients"], data["tensors"]

    (again,) = recorded(PTQ)
    with edited(artifact(again, "fingerprint.json"), older):
        found, both = diff(again, runs["ptq"]), diff(again, again)
        done = command("diff", again, runs["qat"])
        line = command("diff", again, runs["ptq"]).stdout
    assert found.drifts == found.layers == ()
    assert {"version.torch", "source.task", "data.calibration.content"} <= set(found.unrecorded)
    assert "float_weights" in found.ingredients["weights"].equal
    assert both.ingredients["code"].equal == ()
    assert "code 3 ingredients not recorded in one of them" in flat(done.stdout)
    assert "equal in everything on record" in line
    assert [row[4] for row in table_of(both).rows if row[0] == "code"] == ["not recorded"]


# layers


def test_layers_that_change_their_type_have_moved_and_without_a_change_none(plain):
    (after,) = recorded(PTQ.keeping_float("head"))
    (moved,) = [layer for layer in diff(plain, after).layers if layer.dtype[0] != layer.dtype[1]]
    assert (moved.layer, moved.dtype, moved.own_sqnr_db[1]) == ("head", ("int8", "float32"), None)
    assert moved.own_sqnr_db[0] is not None
    assert diff(plain, plain).layers == ()


def test_one_layers_weights_part_in_that_layer_alone(folder):
    floating = PTQ.with_mode("float")
    (before,) = recorded(floating)
    with pytest.MonkeyPatch.context() as patch:
        one_ulp(patch)
        (after,) = recorded(floating)
    assert [layer.layer for layer in diff(before, after).layers] == ["head"]


def test_against_a_float_stage_only_the_type_of_layers_counts(runs):
    (after,) = recorded(PTQ.with_mode("dynamic"))
    assert [(layer.layer, layer.dtype) for layer in diff(runs["float"], after).layers] == [
        ("head", ("float32", "int8_dynamic"))
    ]


class Other(tiny.Tiny):
    name = "other"
    metric = "hits"

    def model(self):
        torch.manual_seed(0)
        stem, last = torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(128, 4)
        parts = OrderedDict(stem=stem, flat=torch.nn.Flatten(), last=last)
        return torch.nn.Sequential(parts).eval()


@pytest.mark.slow
def test_runs_of_other_tasks_are_compared_by_the_layers_names(coarse):
    (after,) = recorded(PTQ, task=Other())
    found = diff(coarse[0], after)
    types = {layer.layer: layer.dtype for layer in found.layers}
    assert (types["head"], types["last"], types["stem"]) == (("int8", None), (None, "int8"), ("int8", "int8"))
    assert found.unpaired == "not comparable: one is accuracy, the other hits"
    assert found.shift is None
    done = command("diff", coarse[0], after, "--explain")
    assert done.exit_code == 2
    assert "say with --task which one executes both recipes" in done.stderr
    with pytest.raises(InputError, match="no change to explain"):
        explain(found, tiny.Tiny())


# samples and metric


def test_flips_match_a_hand_count(coarse):
    before = coarse[1]
    scheme = COARSE | {"activation": {"bits": 2, "observer": "min_max"}}
    recipes = PTQ.having(default=COARSE), PTQ.having(default=scheme)
    (after,) = recorded(recipes[1])
    was, now = (qtrack.execute(tiny.Tiny(), recipe, thorough=False).validation for recipe in recipes)
    expected = {"better": [], "worse": [], "other": []}
    triples = zip(was.labels, was.predictions, now.predictions, strict=True)
    for i, (label, first, second) in enumerate(triples):
        if first != second:
            way = "better" if second == label else "worse" if first == label else "other"
            expected[way].append((i, int(label), (int(first), int(second))))
    found = diff(before, after)
    assert all(expected.values())
    for way, flips in expected.items():
        assert [(flip.index, flip.label, flip.predictions) for flip in found.flipped(way)] == flips
    for label, counts in found.by_class().items():
        assert counts == {way: sum(flip[1] == label for flip in flips) for way, flips in expected.items()}
    lines = flat(command("diff", before, after).stdout)
    index, label, (first, second) = expected["better"][0]
    assert f"sample {index}, class {label} {first} {second} better" in lines


def test_the_metric_has_the_paired_interval_with_its_sign_turned(runs):
    ledger = Ledger.open()
    first, second = (ledger.recorded(runs[stage]).result for stage in ("qat", "ptq"))
    drop, found = paired_drop(first.scores, second.scores), diff(runs["qat"], runs["ptq"])
    assert (found.first.value, found.second.value) == (first.value, second.value)
    assert found.shift == shift(first.scores, second.scores)
    assert (found.shift.change, found.shift.low, found.shift.high) == (-drop.value, -drop.high, -drop.low)


def test_an_improvement_is_positive():
    gain = shift(np.array([0.0, 0.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert gain.change == 0.5
    assert gain.low < 0.5 < gain.high


@pytest.mark.slow
@pytest.mark.parametrize("change", [replaced, reordered])
def test_other_samples_or_another_order_are_said_to_be_not_comparable(runs, change):
    with pytest.MonkeyPatch.context() as patch:
        batches_with(change, "validation")(patch)
        (after,) = recorded(PTQ)
    found = diff(runs["ptq"], after)
    assert (found.flips, found.shift) == ((), None)
    done = command("diff", runs["ptq"], after)
    said = "not comparable: validation held other samples, or the same in another order"
    assert f"samples {said}" in flat(done.stdout)
    assert done.stdout.count(said) == 2


def test_an_order_that_is_not_on_record_is_said(runs):
    (again,) = recorded(PTQ)

    def without(data):
        del data["ingredients"]["data.validation.order"]

    with edited(artifact(again, "fingerprint.json"), without):
        found = diff(runs["ptq"], again)
    assert found.unpaired == "not comparable: which samples validation held is not recorded"


@pytest.mark.slow
def test_scores_without_classes_flip_by_their_value(folder):
    class Distance(tiny.Tiny):
        def labels(self, batch):
            return None

        def score(self, output, batch):
            return -(output - torch.nn.functional.one_hot(batch[1], 4)).pow(2).mean(1)

    before, after = recorded(PTQ, PTQ.having(default=COARSE), task=Distance())
    found = diff(before, after)
    scores = [Ledger.open().recorded(run).result.scores for run in (before, after)]
    assert len(found.flipped("worse")) == int((scores[1] < scores[0] - 1e-3 * np.abs(scores[0])).sum())
    assert found.by_class() == {}
    assert all(flip.label is None for flip in found.flips)
    assert command("diff", before, after).exit_code == 0


# the command


def test_json_holds_the_whole_comparison(runs):
    found = json.loads(command("diff", runs["ptq"], runs["qat"], "--json").stdout)
    assert [found[side]["stage"] for side in ("first", "second")] == ["ptq", "qat"]
    assert {"field": "training.epochs", "was": None, "now": "1"} in found["recipe"]
    assert found["ingredients"]["data"]["differ"] == []
    assert found["equal"] is found["parameters_equal"] is False
    assert found["layers"][0].keys() == {"layer", "dtype", "own_sqnr_db", "own_sqnr_db_change", "parted"}
    assert found["shift"].keys() == {"change", "low", "high"}
    assert "explanation" not in found


@pytest.mark.parametrize("arguments", [(), ("ptq",), ("ptq", "qat", "float"), ("a", "b", "--task", "t.py:T")])
def test_it_takes_two_runs_and_the_task_only_to_explain(arguments):
    assert command("diff", *arguments).exit_code == 2


def test_an_unknown_run_exits_with_2_in_one_line(runs):
    done = command("diff", runs["ptq"], "nothing")
    assert done.exit_code == 2
    assert done.stderr.startswith("qtrack: no run 'nothing'")
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(RunNotFound):
        diff("nothing", runs["ptq"])


def test_a_run_that_left_nothing_to_compare_is_one_line(runs):
    with edited(artifact(runs["ptq"], "fingerprint.json"), lambda data: data.pop("behaviour")):
        done = command("diff", runs["ptq"], runs["qat"])
    assert done.exit_code == 3
    assert "cannot be compared with" in done.stderr


# which of it moved the metric


def explained(before, after, **given):
    return explain(diff(before, after), tiny.Tiny(), **given)


def test_the_change_of_one_field_is_all_of_that_field(plain, monkeypatch):
    (after,) = recorded(PTQ.having(default=COARSE | {"weight": {}}))
    executions = counted(monkeypatch)
    found = explained(plain, after)
    (swap,) = found.swaps
    assert swap.name == "default.activation"
    assert found.share(swap.shift.change) == pytest.approx(1)
    assert swap.shift.change == pytest.approx(found.recorded_change)
    assert swap.shift.high < -0.05
    assert found.interaction == 0
    assert found.beyond == pytest.approx(0)
    assert found.skipped == found.not_at_hand == found.drifted_since == ()
    assert len(executions) == 2


def counted(patch):
    """The recipes that are executed from now on."""
    seen, real = [], qtrack.engine.execute

    def counting(task, recipe, *rest, **more):
        seen.append(recipe)
        return real(task, recipe, *rest, **more)

    patch.setattr("qtrack.engine.execute", counting)
    return seen


@pytest.mark.slow
def test_the_change_of_two_fields_is_both_and_what_they_do_together(coarse):
    done = command("diff", *coarse, "--explain", "--json", "--task", "tiny_task.py:Mine")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["explanation"]
    swaps = {swap["name"]: swap for swap in found["swaps"]}
    assert list(swaps) == ["default.weight", "default.activation"]
    for name, swap in swaps.items():
        part = name.partition(".")[2]
        recipe = PTQ.having(default={"mode": "static", part: COARSE[part]})
        value = qtrack.execute(tiny.Tiny(), recipe, thorough=False).value
        assert swap["value"] == value
        assert swap["shift"]["change"] == pytest.approx(value - found["first"]["value"])
        assert swap["shift"]["low"] <= swap["shift"]["change"] <= swap["shift"]["high"]
        assert swap["share"] == pytest.approx(swap["shift"]["change"] / found["recorded_change"])
    alone = sum(swap["shift"]["change"] for swap in swaps.values())
    assert found["interaction"] == pytest.approx(found["recorded_change"] - alone)
    assert abs(found["interaction"]) > 0.001
    assert found["beyond"] == pytest.approx(0)


def test_the_table_ends_with_what_is_left_and_the_sum(coarse):
    done = command("diff", *coarse, "--explain", "--task", "tiny_task.py:Mine")
    assert done.exit_code == 0, done.output
    lines = flat(done.stdout)
    assert lines[-1].startswith("recorded change ")
    assert lines[-1].endswith(" 100")
    assert lines[-2].startswith("not at hand 0.0 ")
    assert lines[-3].startswith("interaction of the swaps ")
    assert lines[-5].startswith("with default.weight ")


@pytest.mark.slow
def test_a_swap_that_is_no_recipe_is_left_out_and_said(plain):
    weight = {"observer": "moving_average"}
    qat = PTQ.having(training={"epochs": 1}, default={"mode": "static", "weight": weight})
    found = explained(plain, *recorded(qat))
    assert [swap.name for swap in found.swaps] == ["training"]
    assert [skipped.name for skipped in found.skipped] == ["default.weight"]
    assert "needs training" in found.skipped[0].reason


def test_a_swap_that_the_task_refuses_is_left_out_and_said(plain):
    found = diff(plain, *recorded(PTQ.having(seed=2).keeping_float("head")))
    with pytest.MonkeyPatch.context() as patch:
        real = qtrack.engine.execute

        def picky(task, recipe, *rest, **more):
            if recipe.seed == 2 and not recipe.overrides:
                raise InputError("not with\nthis seed alone")
            return real(task, recipe, *rest, **more)

        patch.setattr("qtrack.engine.execute", picky)
        said = explain(found, tiny.Tiny())
    assert said.skipped == (Skipped("seed", "not with this seed alone"),)
    assert [swap.name for swap in said.swaps] == ["overrides"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"engine": "onednn"}, ["engine"]),
        ({"seed": 1, "calibration": {"samples": 8}}, ["seed", "calibration"]),
        ({"default": "dynamic"}, ["default"]),
        ({"default": {"mode": "static", "activation": {"bits": 7}}}, ["default.activation"]),
        ({"training": {"epochs": 1}}, ["training"]),
        ({"overrides": [{"layer": "head", "scheme": "float"}]}, ["overrides"]),
    ],
)
def test_each_changed_part_of_a_recipe_is_swapped_alone(changes, names):
    other = PTQ.having(**changes)
    swaps = dict(recipe_swaps(PTQ, other))
    assert list(swaps) == names
    alone = [PTQ.having(**{name: changes[name]}) for name in names] if len(names) > 1 else [other]
    assert list(swaps.values()) == alone
    assert dict(recipe_swaps(PTQ, PTQ)) == {}


@pytest.mark.slow
def test_the_number_of_threads_is_swapped_and_set_as_recorded(plain, monkeypatch):
    (after,) = recorded(PTQ, threads=2)
    seen, real = [], tiny.Tiny.score
    monkeypatch.setattr(tiny.Tiny, "score", lambda *a: (seen.append(torch.get_num_threads()), real(*a))[1])
    found = explained(plain, after)
    assert [swap.name for swap in found.swaps] == ["threads"]
    assert {1, 2} <= set(seen)
    assert torch.get_num_threads() == 1
    assert found.not_at_hand == ()


@pytest.mark.slow
def test_data_of_before_is_not_at_hand_and_its_share_is_what_executions_do_not_show(seeds):
    with pytest.MonkeyPatch.context() as patch:
        batches_with(noisy, "validation")(patch)
        (before,) = recorded(PTQ)
    after = seeds[1]
    found = explained(before, after)
    (missing,) = found.not_at_hand
    assert (missing.name, missing.now) == ("data.validation.content", missing.other)
    assert [swap.name for swap in found.swaps] == ["seed"]
    assert found.recorded_change > 0.1
    assert found.beyond == pytest.approx(found.recorded_change - found.second.shift.change)
    assert found.share(found.beyond) > 0.9
    said = command("diff", before, after, "--explain", "--task", "tiny_task.py:Mine").stderr
    assert "not at hand: data.validation.content, now as in recipe" in said


def noisy(images, labels):
    return images + 3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)), labels, 16


def test_what_drifted_since_both_were_recorded_is_said(seeds, monkeypatch):
    one_ulp(monkeypatch)
    assert explained(*seeds).drifted_since == ("float_weights",)


@pytest.mark.slow
def test_without_a_change_there_are_no_shares(seeds):
    found = explained(*seeds)
    assert found.recorded_change == 0
    assert found.to_dict()["swaps"][0]["share"] is None
    done = command("diff", *seeds, "--explain", "--task", "tiny_task.py:Mine")
    assert flat(done.stdout)[-1] == "recorded change 0.0 -"
    assert "may be none at all" in done.stderr


def test_the_recorded_task_is_found_where_none_is_given(runs):
    done = command("diff", runs["ptq"], runs["qat"], "--explain")
    assert done.exit_code == 0, done.output
    assert "ptq with training of qat" in done.stderr


def test_nothing_is_recorded_of_an_explanation(seeds):
    kept = len(Ledger.open().finished("tiny"))
    explained(*seeds)
    assert len(Ledger.open().finished("tiny")) == kept


def test_an_interrupt_ends_it(seeds, monkeypatch):

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("qtrack.engine.execute", interrupted)
    done = command("diff", *seeds, "--explain", "--task", "tiny_task.py:Mine")
    assert done.exit_code == 130
    assert done.stderr.endswith("qtrack: interrupted\n")


def test_every_field_of_a_recipe_is_a_part_that_can_be_swapped():
    assert {"version", *RECIPE_PARTS} == set(Recipe.model_fields)


def test_another_backend_is_swapped_with_its_engine():
    fx, pt2e = Recipe(engine="x86"), Recipe(backend="pt2e")
    assert dict(recipe_swaps(fx, pt2e))["backend"] == pt2e


def test_configurations_of_torchaos_own_are_swapped():
    first, second = (
        Recipe(backend="torchao", default={"mode": "torchao", "config": {"n": n}}) for n in (1, 2)
    )
    assert dict(recipe_swaps(first, second)) == {"default.config": second}
