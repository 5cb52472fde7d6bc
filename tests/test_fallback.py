"""The search for layers to leave in float, on made-up networks and on a tiny real one."""

import logging
import math

import numpy as np
import pytest
import torch
from memory import Memory
from tiny import CLASSES, Tiny, WithoutTraining
from torch import nn

from qtrack.budget import Budget
from qtrack.campaign import run_plan
from qtrack.errors import DataError, RecipeError
from qtrack.outcome import Cost, Evaluation, LayerRow, Outcome
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe
from qtrack.search.fewest import most_evaluations
from qtrack.stages import Evidence, Target, fallback, judge
from qtrack.stages.evidence import ProbeFailed

SAMPLES = 1000
START = Recipe(engine="x86")
TARGET = Target(max_drop=0.02)


class Made:
    """A network whose every layer loses so many of 1000 samples; those of different layers are different."""

    coupled = ()

    def __init__(self, lost, graph=True, value=None, failing=(), target=TARGET, winners=()):
        self.lost, self.graph, self.value, self.failing = lost, graph, value, failing
        self.target, self.won = target, winners
        self.probed, self.screened, self.planned, self.proposed, self.spared = [], [], [], [], []
        floating = self.outcome(START.with_mode("float"), frozenset(lost))
        self.baseline = judge(floating, floating, target)

    def scores(self, off):
        scores = np.ones(SAMPLES)
        if self.value is not None and len(off) < len(self.lost):
            return np.full(SAMPLES, self.value)
        position = 0
        for layer, count in self.lost.items():
            if layer not in off:
                scores[position : position + count] = 0
            position += count
        return scores

    def outcome(self, recipe, off):
        rows = [
            LayerRow(i, name, "Conv2d", "int8", 10 * (i + 1), 1, own_sqnr_db=40 - float(count))
            for i, (name, count) in enumerate(self.lost.items())
        ]
        return Outcome(
            recipe, lambda: None, None, "accuracy", Evaluation(self.scores(off)), Cost(0, {}, 0, 1), 1,
            layers=tuple(rows), float_layers=tuple(off),
        )  # fmt: skip

    def probe(self, recipe):
        off = frozenset(override.layer for override in recipe.overrides)
        self.probed.append(off)
        if len(self.probed) in self.failing:
            raise ProbeFailed("the kernel refuses")
        return judge(self.outcome(recipe, off), self.baseline.outcome, self.target)

    def evidence(self):
        start = judge(self.outcome(START, frozenset()), self.baseline.outcome, self.target)
        return Evidence(
            self.target, self.baseline, start, {}, self.probe,
            plan=self.planned.append, spared=self.spared.append, propose=self.proposed.append,
            mixtures=lambda: Mixtures(self) if self.graph else None, winners=lambda: self.won,
        )  # fmt: skip

    def search(self, **options):
        """The layers that are left in float."""
        return {override.layer for override in fallback(START, self.evidence(), **options).overrides}


class Mixtures:
    def __init__(self, made):
        self.made = made

    def coupled(self):
        return self.made.coupled

    def order(self, costs, together):
        return tuple(sorted(costs, key=lambda layer: -self.made.lost[layer] / costs[layer]))

    def harm(self, off):
        return sum(count for layer, count in self.made.lost.items() if layer not in off)

    def scores(self, off, positions):
        self.made.screened.append(off)
        return self.made.scores(off)[list(positions)]


def layers(*lost):
    return {f"l{i}": count for i, count in enumerate(lost)}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("needed", range(1, 17))
def test_it_finds_the_fewest_layers_in_a_number_of_evaluations_known_before(needed, graph):
    made = Made(layers(*[30] * needed, *[0] * (16 - needed)), graph)
    found = made.search()
    assert found == {f"l{i}" for i in range(needed)}
    assert len(made.probed) <= made.planned[0] == most_evaluations(16) == 7
    assert len(set(made.probed)) == len(made.probed)


def test_a_target_that_is_met_already_takes_no_evaluation():
    made = Made(layers(1, 2, 3))
    assert (made.search(), made.probed, made.planned) == (set(), [], [])


def test_what_is_rejected_on_the_samples_that_suffered_most_is_not_evaluated():
    with_graph, without = (Made(layers(*[60] * 12, *[0] * 4), graph) for graph in (True, False))
    assert with_graph.search() == without.search()
    assert len(with_graph.probed) < len(without.probed)
    assert len(with_graph.screened) > len(with_graph.probed)


def test_layers_that_turn_out_not_to_be_needed_are_given_back():
    made = Made(layers(3, 90, 1, 80, 2, 0), graph=False)
    assert made.search() == {"l1", "l3"}


class Misranked(Made):
    """The layer table has the order wrong, so that a beginning of it holds layers that do no harm."""

    def outcome(self, recipe, off):
        from dataclasses import replace

        found = super().outcome(recipe, off)
        rows = tuple(replace(row, own_sqnr_db=float(row.index)) for row in found.layers)
        return replace(found, layers=rows)


def test_a_wrong_ranking_is_made_up_for_by_giving_back():
    made = Misranked(layers(0, 200, 0, 200, 0, 0, 0, 0), graph=False)
    assert made.search() == {"l1", "l3"}
    assert len(made.probed) <= most_evaluations(8)


def test_the_least_bytes_may_be_other_layers_than_the_fewest():
    lost, target = layers(25, 25, 0, 0, 0, 0, 0, 40), Target(max_drop=0.066)
    assert Made(lost, target=target).search() == {"l7"}  # 80 parameters
    assert Made(lost, target=target).search(cost="size") == {"l0", "l1"}  # 10 and 20


def test_no_more_layers_than_allowed_are_left_in_float(caplog):
    made = Made(layers(*[50] * 8))
    with caplog.at_level(logging.WARNING, "qtrack"):
        assert len(made.search(max_layers=3)) <= 3
    assert "no set of layers that was tried surely meets the target" in caplog.text


def test_not_sure_is_not_yes():
    target = Target(max_drop=0.02)
    made = Made(layers(*[5] * 10), target=target)  # 3 left: a drop of 1.5 points, and up to 2.4 by chance
    found = made.search()
    assert judge(made.outcome(START, found), made.baseline.outcome, target).meets_target


def test_where_nothing_meets_the_target_the_best_metric_is_the_answer(caplog):
    class Hopeless(Made):
        def probe(self, recipe):
            judged = super().probe(recipe)
            judged.outcome.validation.scores[:100] = 0
            return judge(judged.outcome, self.baseline.outcome, self.target)

    made = Hopeless(layers(*[20] * 7), graph=False)
    with caplog.at_level(logging.WARNING, "qtrack"):
        assert len(made.search()) == 7
    assert "no set of layers that was tried surely meets the target" in caplog.text


def test_a_constant_metric_ends_the_search():
    made = Made(layers(*[1] * 6), value=0.5)
    assert len(made.search()) == 6
    assert len(made.probed) <= most_evaluations(6)


def test_a_metric_that_is_no_number_never_wins():
    made = Made(layers(*[1] * 6), value=math.nan)
    assert len(made.search()) == 6
    judged = Made(layers(*[1] * 6), value=math.nan, target=Target(max_drop=0.0))
    assert judged.search(max_layers=3) <= {f"l{i}" for i in range(6)}


@pytest.mark.parametrize("graph", [True, False])
def test_a_probe_that_fails_is_one_that_does_not_meet_the_target(graph):
    made = Made(layers(60, 60, 60, 0, 0, 0, 0, 0), graph, failing=(1,))
    found = made.search()
    assert {"l0", "l1", "l2"} <= found
    assert len(made.probed) <= most_evaluations(8)


def test_no_layer_to_put_back_is_an_error():
    made = Made({})
    with pytest.raises(RecipeError, match="no layer with weights runs quantized"):
        made.search()


def test_what_an_earlier_run_found_saves_evaluations():
    lost = layers(*[0] * 12, 60, 60, 60, 60)
    first = Made(lost, graph=False)
    found = first.search()
    again = Made(lost, graph=False, winners=[START.keeping_float(*sorted(found))])
    assert again.search() == found
    assert again.probed[0] == found
    assert again.spared == [4]  # ceil(log2(17)) evaluations would have found it, one did


def test_what_an_earlier_run_found_for_another_network_is_tried_once():
    made = Made(layers(*[60] * 4, *[0] * 12), graph=False, winners=[START.keeping_float("l9", "gone")])
    assert made.search() == {"l0", "l1", "l2", "l3"}
    assert made.probed[0] == {"l9"}
    assert made.spared == []


def test_the_answer_so_far_is_always_one_that_was_tried():
    made = Made(layers(*[60] * 5, *[0] * 11), graph=False)
    made.search()
    tried = [{o.layer for o in recipe.overrides} for recipe in made.proposed]
    assert all(frozenset(one) in {*made.probed, frozenset()} for one in tried)
    assert frozenset(tried[-1]) == frozenset({"l0", "l1", "l2", "l3", "l4"})


def test_layers_that_share_a_scale_go_to_float_together():
    made = Made(layers(30, 0, 0, 30, 0, 0))
    made.coupled = [frozenset({"l1", "l3", "cat"})]
    recipe = fallback(START, made.evidence())
    assert [o.layer or f"call {o.call}" for o in recipe.overrides] == ["l0", "l1", "l3", "call cat"]


class Branches(nn.Module):
    """Two layers of ranges far apart are concatenated: the small one is lost in the scale that they share."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.large, self.small = nn.Linear(36, 8), nn.Linear(36, CLASSES, bias=False)
        self.head = nn.Linear(8 + CLASSES, CLASSES, bias=False)
        torch.manual_seed(0)
        with torch.no_grad():
            self.large.weight.copy_(torch.randn(8, 36) * 1e3)
            patterns = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
            self.small.weight.copy_(patterns.flatten(1))
            self.head.weight.zero_()
            self.head.weight[:, 8:] = torch.eye(CLASSES)

    def forward(self, x):
        x = self.flatten(x)
        return self.head(torch.cat([self.large(x), self.small(x)], 1))


def test_a_concatenation_whose_inputs_differ_in_range_is_mended():
    task = type("Concatenated", (Tiny,), {"model": lambda self: Branches().eval()})()
    memory = run(["float", "ptq", "fallback"], task, target={"max_drop": 0.05})
    before, after = memory.results[1:]
    assert before.judged.meets_target is False
    assert after.judged.meets_target
    assert {"large", "small"} <= set(after.outcome.float_layers)
    assert [o.call for o in after.outcome.recipe.overrides if o.call] == ["cat"]


# On a real network ------------------------------------------------------------------------------------------

POOR = {"name": "poor", "observer": "min_max", "samples": 1}


def run(stages, task=None, budget=None, **fields):
    memory = Memory()
    fields = {"target": {"max_drop": 0.0}, "recipe": {"engine": "x86"}} | fields
    pipeline = Pipeline(name="p", task="tests", stages=stages, threads=1, **fields)
    run_plan(plan_of(pipeline, task or Tiny()), memory, budget=budget)
    return memory


def test_its_probes_are_steps_and_counted(caplog):
    with caplog.at_level(logging.INFO, "qtrack"):
        memory = run(["float", {"ptq": POOR}, "fallback"])
    result, stage = memory.results[-1], memory.stages["fallback"]
    steps = [step for key, _, step in stage.points if key == "search/accuracy"]
    assert steps == list(range(1, len(steps) + 1))
    assert (result.searched.ended, result.searched.planned) == ("complete", most_evaluations(3))
    assert len(result.probes) == len(steps) <= most_evaluations(3)
    assert result.cost.evaluations == len(steps) + 1
    assert "fallback: at most 5 evaluations, about" in caplog.text
    assert {row["layer"] for row in stage.tables["sensitivity"]} >= {"stem", "block.conv", "head"}
    assert result.measuring.forward_samples > 0


def test_it_searches_without_a_graph_and_without_a_loss():
    eager = run(["float", {"ptq": POOR}, "fallback"], recipe={"backend": "eager", "engine": "x86"})
    assert "sensitivity" not in eager.stages["fallback"].tables
    assert eager.results[-1].searched.ended == "complete"
    plain = run(["float", {"ptq": POOR}, "fallback"], task=WithoutTraining())
    assert {row["loss"] for row in plain.stages["fallback"].tables["sensitivity"]} == {None}


def test_the_latency_that_a_layer_adds_can_be_its_cost():
    memory = run(["float", {"ptq": POOR}, {"fallback": {"cost": "latency"}}])
    assert memory.stages["fallback"].tables["prices"]
    assert memory.results[-1].searched.ended == "complete"


def test_a_budget_of_one_evaluation_keeps_the_best_so_far(caplog):
    with caplog.at_level(logging.INFO, "qtrack"):
        memory = run(["float", {"ptq": POOR}, "fallback"], budget=Budget(max_evaluations=1))
    result = memory.results[-1]
    assert (result.searched.ended, result.searched.evaluations) == ("budget", 1)
    assert result.question is None  # with more time the answer would be another
    assert "the budget allows 1" in caplog.text
    assert "its budget is spent after 1 evaluations" in caplog.text


def test_no_time_at_all_keeps_what_the_search_started_from():
    memory = run(["float", {"ptq": POOR}, "fallback"], budget=Budget(max_minutes=0.0))
    assert memory.results[-1].searched.evaluations == 0
    assert memory.results[-1].outcome.recipe == memory.results[1].outcome.recipe


class Interrupted(Tiny):
    """Ctrl-C in the middle of a pass over the validation split."""

    passes = 0
    at = 5
    """The data are read once; then float, ptq, a probe, and this one."""

    def validation(self):
        self.passes += 1
        for i, batch in enumerate(super().validation()):
            if self.passes == self.at and i == 3:
                raise KeyboardInterrupt
            yield batch


def test_ctrl_c_keeps_the_best_so_far_as_a_run_and_ends_the_campaign(caplog):
    task = Interrupted()
    memory = Memory()
    stages = ["float", {"ptq": POOR}, "fallback", "dynamic"]
    pipeline = Pipeline(
        name="p", task="t", stages=stages, threads=1, target={"max_drop": 0.0}, recipe={"backend": "eager"}
    )
    with caplog.at_level(logging.WARNING, "qtrack"), pytest.raises(KeyboardInterrupt):
        run_plan(plan_of(pipeline, task), memory)
    assert [result.name for result in memory.results] == ["float", "poor", "fallback"]
    assert memory.results[-1].searched.ended == "interrupted"
    assert len(memory.results[-1].probes) == 1
    assert memory.stages["fallback"].status == "FINISHED"
    assert "interrupted; the best so far is kept" in caplog.text


class Crashing(Tiny):
    """A network that its third model's data do not fit."""

    passes = 0

    def validation(self):
        self.passes += 1
        if self.passes == 4:
            raise DataError("validation: the disk is away")
        return super().validation()


def test_a_probe_that_crashes_is_recorded_and_the_search_goes_on(caplog):
    with caplog.at_level(logging.WARNING, "qtrack"):
        memory = run(["float", {"ptq": POOR}, "fallback"], Crashing(), recipe={"backend": "eager"})
    searched = memory.results[-1].searched
    assert [(one.step, one.error) for one in searched.failures] == [(1, "validation: the disk is away")]
    assert searched.ended == "complete"
    assert searched.evaluations == 1 + len(memory.results[-1].probes)
    assert "a probe failed and is skipped" in caplog.text
