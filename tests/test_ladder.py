"""Prices measured on a tiny network, and the stage that spends them."""

from __future__ import annotations

import pytest
import tiny
import torch
from memory import Memory
from prices_made import chain
from torch import nn

from qtrack.campaign import run_plan
from qtrack.engine import quantize, settled
from qtrack.errors import RecipeError
from qtrack.numerics import timing
from qtrack.pipeline import Pipeline, plan_of
from qtrack.recipe import Dynamic, Float, Override, Recipe, Static
from qtrack.search.prices import OUTSIDE
from qtrack.sensitivity import prices as measuring
from qtrack.sensitivity.prices import KINDS, OBSERVERS, prices, recipe_on
from qtrack.stages import Evidence, Judged, Target
from qtrack.stages.evidence import ProbeFailed
from qtrack.stages.ladder import ladder
from qtrack.statistics import Drop

KINDS_TAKEN = ("percentile", "per_channel", "dynamic", "float16")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few rounds, and of the observers one alone."""
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(measuring, "KINDS", KINDS_TAKEN)


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUNDS", 2)
        patch.setattr(measuring, "KINDS", KINDS_TAKEN)
        found, cost = prices(tiny.Tiny(), Recipe())
    assert cost.forward_samples > 64 * len(KINDS_TAKEN)
    assert (cost.evaluations, list(cost.phases)) == (0, ["price"])
    return found


# what is measured


def test_each_layer_has_the_rungs_that_it_can_stand_on(table):
    rungs = {layer.layer: [rung.name for rung in layer.rungs] for layer in table.layers}
    conv = ["recipe", "percentile", "per_channel", "float16", "float"]
    assert rungs == {
        "stem": conv,
        "block.conv": conv,
        "block.add": ["recipe", "percentile", "float"],
        "pool": ["recipe", "float"],
        "head": [*conv[:3], "dynamic", *conv[3:]],
    }
    assert [layer.is_call for layer in table.layers] == [False, False, True, False, False]


def test_a_tensor_goes_to_whom_the_network_hands_it(table):
    ends = [(flow.producer, flow.consumers) for flow in table.flows]
    assert ends == [
        (OUTSIDE, ("stem",)),
        ("stem", ("block.conv", "block.add")),
        ("block.conv", ("block.add",)),
        ("block.add", ("pool",)),
        ("pool", (OUTSIDE,)),  # to flatten, which torch.ao leaves in float
        (OUTSIDE, ("head",)),
        ("head", (OUTSIDE,)),
    ]


def test_noise_time_and_bytes_are_measured(table):
    head = table.by_name["head"]
    noise = {rung.name: rung.noise for rung in head.rungs}
    assert 0 == noise["float"] < noise["float16"] < noise["dynamic"] < 0.01
    assert all(rung.milliseconds > 0 for layer in table.layers for rung in layer.rungs)
    stored = {rung.name: rung.bytes for rung in head.rungs}
    assert stored["float"] == 4 * (72 * 4 + 4)
    assert stored["recipe"] < stored["float16"] < stored["float"]


def test_the_bytes_of_a_choice_are_those_of_its_model(table):
    from qtrack.engine.measure import size_bytes

    choice = {"stem": "float16", "block.add": "float", "head": "float"}
    model = quantize(tiny.Tiny(), table.recipe(settled(Recipe()), choice)).quantized.model
    assert table.predicted_bytes(choice) == pytest.approx(size_bytes(model.state_dict()), abs=40)


@pytest.mark.parametrize("name", ["float", "float16"])
def test_the_conversions_of_a_choice_are_those_of_its_model(table, name):
    choice = {"block.conv": name, "pool": "float", "head": "percentile"}
    model = quantize(tiny.Tiny(), table.recipe(settled(Recipe()), choice)).quantized.model
    converted = [node for node in model.graph.nodes if "quantize" in node.name and node.op != "get_attr"]
    assert len(converted) == len(list(table.conversions(choice))) == 6


def test_calls_of_one_module_stand_on_one_rung():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 1), nn.Linear(36, 4)

        def forward(self, x):
            return self.head(self.conv(torch.relu(self.conv(x))).flatten(1))

    class Task(tiny.Tiny):
        def model(self):
            torch.manual_seed(0)
            return Twice().eval()

    found, _ = prices(Task(), Recipe())
    assert {"conv", "head"} <= set(found.by_name)
    assert "conv#2" not in found.by_name
    assert [flow.producer for flow in found.flows].count("conv") == 2


def test_a_recipe_on_a_rung_keeps_what_it_left_in_float():
    kept = (Override(layer="head", scheme=Float()), Override(call="add", scheme=Static()))
    recipe = Recipe(overrides=kept)
    dynamic = recipe_on("dynamic", recipe)
    assert dynamic == Recipe(default=Dynamic(), overrides=kept[:1])
    per_channel = recipe_on("per_channel", recipe)
    assert per_channel.overrides[0] == kept[0]
    assert per_channel.overrides[1].scheme.weight.granularity == "per_channel"
    assert recipe_on("histogram", recipe) is None  # it is that already


def test_every_kind_of_observer_is_a_rung():
    assert set(OBSERVERS) < set(KINDS)
    found = {kind: recipe_on(kind, Recipe()).default.activation.observer.kind for kind in OBSERVERS[:2]}
    assert found == {"min_max": "min_max", "moving_average": "moving_average"}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(backend="eager"), "recipe.backend: the layers of eager cannot be priced one by one: use fx"),
        (Recipe(default="dynamic"), "recipe.default.mode: dynamic has no ladder of rungs: start from"),
        (Recipe(training={}), "recipe.training: rungs are priced without training"),
        (
            Recipe(overrides=({"glob": "*", "scheme": "float"}, {"function": "add", "scheme": "float"})),
            "recipe: no layer runs on integers, so that there is nothing to choose for",
        ),
    ],
)
def test_what_cannot_be_priced_is_refused_in_a_line(recipe, said):
    with pytest.raises(RecipeError, match=f"^{said}"):
        prices(tiny.Tiny(), recipe)


# the stage, on prices made up


START = Recipe(engine="x86")


class Outcome:
    """What a stage looks at."""

    def __init__(self, recipe, value):
        self.recipe, self.value = recipe, value


def in_float(recipe):
    return "".join(override.layer for override in recipe.overrides)


class Trials:
    """Says of each recipe whether it meets the target, by the layers that it has in float."""

    def __init__(self, meets, broken=()):
        self.meets, self.broken = meets, broken
        self.tried, self.proposed, self.planned = [], [], []

    def judged(self, recipe):
        floats = in_float(recipe)
        return Judged(Outcome(recipe, len(floats)), Drop(0, 0, 0, 0.95, 9), self.meets(floats))

    def probe(self, recipe):
        self.tried.append(in_float(recipe))
        if self.tried[-1] in self.broken:
            raise ProbeFailed("no kernel")
        return self.judged(recipe)

    @property
    def evidence(self):
        return Evidence(
            Target(),
            None,
            self.judged(START),
            {},
            self.probe,
            plan=self.planned.append,
            propose=lambda recipe: self.proposed.append(in_float(recipe)),
            rungs=chain,
        )


def test_the_cheapest_that_meets_the_target_is_found_by_halving():
    trials = Trials(lambda floats: "b" in floats)
    assert in_float(ladder(START, trials.evidence)) == "b"
    assert (trials.tried, trials.proposed, trials.planned) == (["b", ""], ["", "b"], [3])


def test_where_none_meets_it_the_best_of_those_tried_is_taken():
    trials = Trials(lambda floats: None)
    assert in_float(ladder(START, trials.evidence)) == "abc"
    assert trials.tried == ["b", "bc", "abc"]


def test_a_start_that_meets_it_is_left_only_for_what_costs_less():
    trials = Trials(lambda floats: True)
    assert ladder(START, trials.evidence) == START
    assert trials.tried == []


def test_a_probe_that_fails_is_one_that_does_not_meet_it():
    trials = Trials(lambda floats: "b" in floats, broken=("b",))
    assert in_float(ladder(START, trials.evidence)) == "bc"


def test_few_evaluations_make_do_with_a_coarser_front():
    trials = Trials(lambda floats: "c" in floats)
    ladder(START, trials.evidence, max_evaluations=1)
    assert trials.tried == ["abc"]


@pytest.mark.parametrize(
    ("budget", "floats"), [({"max_latency_ms": 8.0}, "b"), ({"max_size_kb": 0.91}, "bc")]
)
def test_a_budget_is_spent_without_a_trial(budget, floats):
    trials = Trials(lambda floats: False)
    assert in_float(ladder(START, trials.evidence, **budget)) == floats
    assert trials.tried == []


@pytest.mark.parametrize(
    ("recipe", "options", "said"),
    [
        (START, {"max_latency_ms": 1.0}, "no choice of rungs costs so little: 1 ms asked, the least is 5 ms"),
        (
            START,
            {"max_latency_ms": 1.0, "max_size_kb": 1.0},
            "ladder: max_latency_ms and max_size_kb are",
        ),
        (START.with_mode("dynamic"), {}, "ladder: dynamic has no rungs to choose from: start from a stage"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(recipe, options, said):
    with pytest.raises(RecipeError, match=f"^{said}"):
        ladder(recipe, Trials(lambda floats: False).evidence, **options)


# the stage in a campaign


def in_memory(*stages):
    memory = Memory()
    pipeline = Pipeline(name="tiny", task="tiny:Tiny", stages=stages, target={"max_drop": 0.0})
    results = run_plan(plan_of(pipeline, tiny.Tiny()), memory)
    return memory, {result.name: result for result in results}


def test_its_recipe_runs_as_the_table_says_and_the_table_is_recorded(monkeypatch):
    monkeypatch.setattr(measuring, "KINDS", ("per_channel",))
    memory, results = in_memory("ptq", {"ladder": {"max_size_kb": 2.5}})
    rows = memory.stages["ladder"].tables["prices"]
    chosen = {row["layer"]: row for row in rows if row["chosen"] and row["dtype"]}
    ran = {row.layer: row.dtype for row in results["ladder"].outcome.layers}
    assert {name: row["dtype"] for name, row in chosen.items() if name in ran} == ran
    assert "float" in {row["rung"] for row in chosen.values()}
    assert results["ladder"].outcome.size_bytes < 2500
    cost = results["ladder"].cost
    assert cost.seconds > cost.phases["price"] > 0
    assert results["ladder"].probes == ()


def test_without_a_stage_that_quantizes_there_is_nothing_to_price():
    with pytest.raises(RecipeError, match="let it start from a stage that quantizes"):
        in_memory("ladder")


# what fx does with such recipes


def test_a_pool_left_in_float_hands_floats_to_float_layers_and_integers_to_others():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.pool, self.head = nn.MaxPool2d(2), nn.Linear(36, 4)

        def forward(self, x):
            x = self.pool(torch.relu(self.stem(x)))
            return self.head((x + self.conv(x)).flatten(1))

    class Task(tiny.Tiny):
        def model(self):
            torch.manual_seed(0)
            return Pooled().eval()

    found = quantize(Task(), Recipe().keeping_float("pool", "conv")).quantized
    assert found.pair.moves == {}
    assert {site.layer: site.dtype for site in found.pair.sites if site.params} == {
        "stem": "int8",
        "conv": "float32",
        "head": "int8",
    }
