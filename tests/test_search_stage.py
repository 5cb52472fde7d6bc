"""The stage that searches over recipe choices: by itself on made-up worth, and on a tiny model."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from ledger_made import outcome
from memory import Memory
from tiny import CLASSES, Tiny
from torch import nn

from qtrack.budget import Budget
from qtrack.campaign import run_plan
from qtrack.errors import PipelineError, RecipeError
from qtrack.outcome import Cost, Latency, Stopped
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Recipe
from qtrack.scratch import Scratch
from qtrack.stages import Evidence, Target, judge
from qtrack.stages.evidence import ProbeFailed, SearchOver
from qtrack.stages.search import search

PTQ = Recipe(engine="x86")
SAMPLES = 100


def worth(recipe):
    """How many of the samples it gets right."""
    return 60 + 20 * (recipe.default.weight.granularity == "per_channel") + 10 * recipe.applies("equalize")


class Bench:
    """Evidence on a made-up worth; keeps what the stage says."""

    def __init__(self, worth=worth, max_drop=0.25, storage=None, winners=()):
        self.worth = worth
        self.probed, self.planned, self.proposed, self.others, self.tables = [], [], [], [], {}
        self.spared, self.expected = [], []
        self.baseline = self.outcome(PTQ, SAMPLES)
        self.target = Target(max_drop=max_drop)
        self.evidence = Evidence(
            self.target,
            None,
            None,
            {},
            self.probe,
            plan=self.planned.append,
            spared=self.spared.append,
            expect=self.expected.append,
            propose=self.proposed.append,
            table=self.tables.__setitem__,
            also=self.others.append,
            storage=lambda asked: storage,
            winners=lambda: winners,
        )

    def outcome(self, recipe, right):
        scores = np.arange(SAMPLES) * 37 % SAMPLES < right  # the same share of every part
        latency = Latency(2.0 if recipe.applies("equalize") else 1.0, 0.1, 4.0, 1, 1, 9)
        found = outcome(recipe, tuple(scores.astype(float)))
        size = 90 if recipe.default.weight.granularity == "per_channel" else 80
        return replace(found, size_bytes=size, latency=latency)

    def probe(self, recipe, *, timed=False, until=None):
        self.probed.append(recipe)
        made = self.outcome(recipe, self.worth(recipe))
        scores = made.validation.scores
        for end in range(10, SAMPLES + 1, 10):
            if until and until(scores[:end]):
                raise Stopped(scores[:end], Cost(0.0, {}, end, 0))
        return judge(made if timed else replace(made, latency=None), self.baseline, self.target)

    def search(self, recipe=PTQ, **options):
        return search(recipe, self.evidence, **options)


def test_the_start_is_tried_first_and_the_best_is_the_answer():
    bench = Bench()
    found = bench.search(trials=15)
    assert bench.probed[0] == PTQ
    assert worth(found) == max(map(worth, bench.probed)) == 90
    assert (bench.planned, bench.spared) == ([15], [])


def test_every_improvement_is_proposed():
    bench = Bench()
    found = bench.search(trials=15)
    assert bench.proposed[0] == PTQ
    assert bench.proposed[-1] == found


def test_no_recipe_is_tried_twice():
    bench = Bench()
    bench.search(trials=30, space=["granularity", "equalize", "observer"])
    assert len({recipe.digest for recipe in bench.probed}) == len(bench.probed)


def test_it_ends_when_all_that_there_is_has_been_tried():
    bench = Bench()
    bench.search(trials=30, space=["granularity", "equalize"])
    assert len(bench.probed) == 4


def test_the_same_seed_makes_the_same_trials():
    first, second, other = Bench(), Bench(), Bench()
    for bench, seed in ((first, 0), (second, 0), (other, 1)):
        bench.search(trials=12, seed=seed)
    assert first.probed == second.probed
    assert first.probed != other.probed


def test_a_trial_that_is_clearly_behind_is_stopped():
    bench = Bench(lambda recipe: 90 if recipe.default.activation.observer.kind == "histogram" else 20)
    bench.search(trials=20)
    rows = bench.tables["trials"]
    stopped = [row for row in rows if row["how"] == "stopped"]
    assert stopped
    assert all(row["observer"] != "histogram" and row["metric"] < 0.5 for row in stopped)
    assert len(rows) == 20


def test_each_trial_is_a_row_with_its_choices():
    bench = Bench()
    bench.search(trials=6, space=["granularity", "observer"])
    rows = bench.tables["trials"]
    assert rows[0]["trial"] == 0
    assert list(rows[0]) == [
        *("trial", "recipe_digest", "how", "granularity", "observer", "quantile", "averaging_constant"),
        *("metric", "meets_target", "size", "latency", "error"),
    ]
    assert rows[0]["recipe_digest"] == PTQ.digest
    assert rows[0]["quantile"] is None


def test_with_costs_the_cheapest_that_meets_the_target_is_the_answer():
    bench = Bench(max_drop=0.3)
    found = bench.search(trials=12, objectives=["metric", "latency"], space=["granularity", "equalize"])
    assert worth(found) == 80
    assert not found.applies("equalize")  # which costs time here
    assert [worth(recipe) for recipe in bench.others] == [90]
    assert {row["latency"] for row in bench.tables["trials"]} == {0.25, 0.5}


def test_costs_count_in_their_order():
    for objectives, equalizes in ((["size"], True), (["latency", "size"], False)):
        found = Bench(max_drop=0.9).search(trials=4, objectives=objectives, space=["granularity", "equalize"])
        assert found.default.weight.granularity == "per_tensor"
        assert found.applies("equalize") == equalizes  # at equal cost the metric counts


def test_no_more_stages_than_are_to_be_kept():
    for keep in (1, 2):
        bench = Bench(max_drop=0.9)
        bench.search(trials=4, objectives=["latency", "size"], space=["granularity", "equalize"], keep=keep)
        assert len(bench.others) == keep - 1


def test_where_none_meets_the_target_it_is_the_best_metric():
    found = Bench(max_drop=0.0).search(trials=4, objectives=["size"], space=["granularity", "equalize"])
    assert worth(found) == 90


def test_a_spent_budget_leaves_the_others_as_stages_too():
    def spending(recipe):
        if len(bench.probed) > 6:
            raise SearchOver("budget")
        return worth(recipe)

    bench = Bench(spending, max_drop=0.9)
    with pytest.raises(SearchOver):
        bench.search(trials=20, objectives=["metric", "size"], space=["granularity", "equalize", "observer"])
    assert len(bench.others) == 1


def test_latency_is_measured_only_where_it_is_an_objective():
    bench = Bench()
    bench.search(trials=3, objectives=["metric", "size"])
    assert {row["latency"] for row in bench.tables["trials"]} == {None}


def test_what_won_before_is_tried_first():
    won = PTQ.with_weights(granularity="per_channel").with_transform("equalize")
    kept_float = won.having(overrides=[{"layer": "x", "scheme": "float"}])
    bench = Bench(winners=[PTQ.with_mode("dynamic"), won, kept_float])
    bench.search(trials=3)
    assert bench.probed[:2] == [PTQ, won]
    assert len({recipe.digest for recipe in bench.probed}) == 3


def test_a_probe_that_fails_is_a_failed_trial_and_the_search_goes_on():
    def broken(recipe):
        if recipe.applies("equalize"):
            raise ProbeFailed("it broke")
        return worth(recipe)

    bench = Bench(broken)
    assert worth(bench.search(trials=10)) == 80
    assert "it broke" in {row["error"] for row in bench.tables["trials"]}


def test_a_metric_that_is_no_number_is_a_failed_trial():
    bench = Bench()
    real = bench.outcome

    def made(recipe, right):
        found = real(recipe, right)
        bad = replace(found.validation, scores=np.full(SAMPLES, np.nan))
        return replace(found, validation=bad) if recipe.applies("equalize") else found

    bench.outcome = made
    assert not bench.search(trials=4, space=["granularity", "equalize"]).applies("equalize")
    assert "the metric is not a number" in {row["error"] for row in bench.tables["trials"]}


@pytest.mark.parametrize("interruption", [SearchOver("budget"), KeyboardInterrupt()])
def test_an_interrupted_search_is_continued_as_if_it_had_not_been(tmp_path, interruption):
    whole = Bench()
    expected = whole.search(trials=12)
    count = []

    def dying(recipe):
        count.append(recipe)
        if len(count) > 7:
            raise interruption
        return worth(recipe)

    first = Bench(dying, storage=tmp_path / "s")
    with pytest.raises(type(interruption)):
        first.search(trials=12)
    assert len(first.tables["trials"]) == 7
    second = Bench(storage=tmp_path / "s")
    assert second.search(trials=12) == expected
    assert (second.planned, second.spared) == ([5], [7])
    assert first.probed[:7] + second.probed == whole.probed


def test_a_complete_search_tries_nothing_again(tmp_path):
    first, second = (Bench(storage=tmp_path / "s") for _ in range(2))
    assert first.search(trials=6) == second.search(trials=6)
    assert second.probed == []
    assert second.proposed == [first.proposed[-1]]
    assert second.tables == first.tables


def test_more_trials_go_on_where_the_earlier_ones_ended(tmp_path):
    Bench(storage=tmp_path / "s").search(trials=4)
    more, whole = Bench(storage=tmp_path / "s"), Bench()
    more.search(trials=9)
    whole.search(trials=9)
    assert (more.planned, more.spared) == ([5], [4])
    assert more.probed == whole.probed[4:]


def test_a_batch_is_said_before_any_of_it_is_tried():
    bench = Bench()
    bench.search(trials=10, batch=4)
    assert len(bench.probed) == 10
    assert len(bench.expected[0]) == 4
    assert [one for batch in bench.expected for one in batch] == bench.probed
    timed = Bench()
    timed.search(trials=6, batch=4, objectives=["metric", "latency"])
    assert timed.expected == []


def test_batches_of_one_are_said_as_well_and_change_nothing():
    one, without = Bench(), Bench()
    one.search(trials=8, batch=1)
    without.search(trials=8)
    assert one.probed == without.probed == [batch[0] for batch in one.expected if batch]


def test_more_trials_go_on_in_the_middle_of_a_batch(tmp_path):
    Bench(storage=tmp_path / "s").search(trials=10, batch=4)
    more, whole = Bench(storage=tmp_path / "s"), Bench()
    more.search(trials=15, batch=4)
    whole.search(trials=15, batch=4)
    assert more.probed == whole.probed[10:]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (PTQ.with_mode("float"), {}, "there is nothing to search: start from a stage that quantizes"),
        (PTQ, {"space": ["training"]}, "space: training cannot be chosen here"),
        (PTQ, {"space": []}, "space: it is empty"),
    ],
)
def test_where_there_is_nothing_to_search_it_says_so(recipe, options, message):
    with pytest.raises(RecipeError, match=message):
        Bench().search(recipe, **options)


# in campaigns

EASY = {"max_drop": 0.2}
COSTS = {"trials": 4, "objectives": ["size"], "space": ["granularity", "observer"]}


def plan(*stages, target=EASY, **fields):
    pipeline = Pipeline(name="p", task="tests", stages=stages, threads=1, target=target, **fields)
    return plan_of(pipeline, Tiny())


def run(*stages, scratch=None, budget=None, **fields):
    memory = Memory()
    run_plan(plan(*stages, **fields), memory, scratch=scratch, budget=budget)
    return memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"objectives": ["speed"]},
            r"stages\[1\].search.objectives: \['speed'\]: Input should be 'metric', 'lat",
        ),
        (
            {"space": ["weights"]},
            r"stages\[1\].search.space: \['weights'\]: Input should be 'observer', 'gran",
        ),
        ({"trials": 0}, r"stages\[1\].search.trials: 0: Input should be greater than or equal to 1"),
    ],
)
def test_options_that_mean_nothing_are_found_before_anything_runs(options, message):
    with pytest.raises(PipelineError, match=message):
        plan("ptq", {"search": options})


def test_without_optuna_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("qtrack.stages.evidence.find_spec", lambda name: None)
    with pytest.raises(
        PipelineError, match=r"search: optuna is not installed: pip install 'qtrack\[search\]'"
    ):
        plan("ptq", "search")


def test_no_stage_may_be_called_like_a_further_answer():
    with pytest.raises(ValueError, match=r"'ptq.2' is what a further answer of 'ptq' is called"):
        plan("ptq", {"ptq": {"name": "ptq.2"}})
    assert plan("ptq", {"ptq": {"name": "int8.2"}})


def test_each_trial_is_a_step():
    memory = run("float", "ptq", {"search": {"trials": 4}}, target={"max_drop": 0.0})
    result = memory.results[-1]
    steps = [step for key, _, step in memory.stages["search"].points if key == "search/accuracy"]
    assert steps == [1, 2, 3]  # the start is known
    assert len(memory.stages["search"].tables["trials"]) == 4
    assert result.outcome.value >= memory.results[1].outcome.value
    assert (result.searched.ended, result.searched.planned, result.searched.evaluations) == ("complete", 4, 3)


def test_trials_that_were_stopped_are_steps_that_cost_what_they_did():
    def stopping(recipe, evidence):
        with pytest.raises(Stopped):
            evidence.probe(recipe.having(seed=5), until=lambda scores: len(scores) > 20)
        return recipe

    made, memory = plan("float", "ptq"), Memory()
    made.stages["ptq"] = stopping
    result = run_plan(made, memory)[1]
    (failure,) = result.searched.failures
    assert failure.error.startswith("stopped after 32 samples, where the metric was 0.")
    assert (failure.step, result.searched.evaluations) == (1, 1)
    assert result.cost.forward_samples == result.outcome.cost.forward_samples + 64 + 32


def test_further_answers_are_stages_after_it_that_no_stage_starts_from():
    also = PTQ.with_weights(granularity="per_channel")

    def naming(recipe, evidence):
        evidence.also(also)
        evidence.also(also.with_transform("equalize"))
        return recipe

    made, memory = plan("float", "ptq", "reduce_range", recipe={"engine": "x86"}), Memory()
    made.stages["ptq"] = naming
    results = run_plan(made, memory)
    assert [(r.name, r.index) for r in results] == [
        *(("float", 0), ("ptq", 1), ("ptq.2", 2), ("ptq.3", 3), ("reduce_range", 4))
    ]
    assert results[2].outcome.recipe == also
    assert memory.stages["reduce_range"].recipes[0][1] == PTQ


def test_with_the_target_met_the_further_answers_are_still_there():
    def naming(recipe, evidence):
        evidence.also(PTQ.with_weights(granularity="per_channel"))
        return recipe

    made, memory = plan("float", "ptq", "per_channel", until="target"), Memory()
    made.stages["ptq"] = naming
    assert [result.name for result in run_plan(made, memory)] == ["float", "ptq", "ptq.2"]


def test_a_budget_ends_the_search_and_the_next_run_continues_it(tmp_path):
    stages = ("float", "ptq", {"search": {"trials": 4, "space": ["observer", "granularity"]}})
    whole = run(*stages)
    first = run(*stages, scratch=Scratch(tmp_path), budget=Budget(max_evaluations=2))
    assert first.results[-1].searched.ended == "budget"
    second = run(*stages, scratch=Scratch(tmp_path))
    assert second.results[-1].searched.evaluations == 1
    assert second.results[-1].searched.saved == 3
    tables = [memory.stages["search"].tables["trials"] for memory in (whole, second)]
    assert [row["recipe_digest"] for row in tables[0]] == [row["recipe_digest"] for row in tables[1]]
    assert whole.results[-1].outcome.recipe == second.results[-1].outcome.recipe


def test_another_target_is_another_study(tmp_path):
    for max_drop in (0.2, 0.1):
        stages = ("ptq", {"search": {"trials": 2, "space": ["granularity"]}})
        memory = run(*stages, scratch=Scratch(tmp_path), target={"max_drop": max_drop})
        assert memory.results[-1].searched.saved == 0
    assert len(list(tmp_path.glob("*.study.log"))) == 2


def test_latency_is_measured_in_turns_with_the_float_model_and_kept(tmp_path):
    stages = ("float", "ptq", {"search": {"trials": 2, "objectives": ["latency"], "space": ["granularity"]}})
    memory = run(*stages, scratch=Scratch(tmp_path))
    (probe,) = memory.results[2].probes
    assert probe.outcome.latency.float_median_ms > 0
    rows = memory.stages["search"].tables["trials"]
    assert all(row["latency"] > 0 for row in rows)
    (file,) = tmp_path.glob("*.probe.npz")
    kept = Scratch(tmp_path).probe(file.name.split(".")[0], probe.outcome.recipe, lambda: None)
    assert kept.latency == probe.outcome.latency


def test_training_that_was_stopped_leaves_nothing_to_go_on_from(tmp_path):
    def stopping(recipe, evidence):
        with pytest.raises(Stopped):
            evidence.probe(recipe, until=lambda scores: True)
        return recipe.having(training=None)

    training = {"training": {"epochs": 1}}
    made = plan("float", {"recipe": {"name": "qat"}}, recipe=training)
    made.stages["qat"] = stopping
    run_plan(made, Memory(), scratch=Scratch(tmp_path))
    assert list(tmp_path.glob("*.epoch.pt")) == []


@pytest.mark.slow
@pytest.mark.parametrize("start", ["qat", "eager", "pt2e", "dynamic"])
def test_every_kind_of_recipe_can_be_searched(start):
    first = {"qat": {"qat": {"epochs": 1}}, "dynamic": "dynamic"}.get(start, "ptq")
    backend = start if start in ("eager", "pt2e") else "fx"
    memory = run("float", first, {"search": {"trials": 5}}, recipe={"backend": backend})
    hows = [row["how"] for row in memory.stages["search"].tables["trials"]]
    assert hows[0] == "complete"
    assert set(hows) <= {"complete", "stopped"}
    assert memory.results[2].outcome.value >= memory.results[1].outcome.value


class Matched(nn.Module):
    """Patterns as weights, and one huge weight on an input that is never set."""

    def __init__(self):
        super().__init__()
        self.pad = nn.ConstantPad1d((0, 1), 0.0)
        self.head = nn.Linear(37, CLASSES, bias=False)
        patterns = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.head.weight[:, :36] = patterns.flatten(1)
            self.head.weight[:, 36] = 1e4

    def forward(self, x):
        return self.head(self.pad(x.flatten(1)))


class Skewed(Tiny):
    def model(self):
        return Matched()


def test_an_early_word_says_what_cannot_work(caplog):
    with caplog.at_level(logging.WARNING, "qtrack"):
        pipeline = Pipeline(
            name="p",
            task="tests",
            stages=["float", "ptq", {"search": {"trials": 2}}],
            target={"max_drop": 0.01},
            recipe={"engine": "x86"},
        )
        run_plan(plan_of(pipeline, Skewed()), Memory())
    assert "search: weights alone on integers lose 0." in caplog.text
    assert "no other range for activations helps" in caplog.text
    assert "What remains: scales per channel, equalize, QAT, or a larger type" in caplog.text
    assert "activations alone" not in caplog.text
