"""Fabricated strategies, layers and results, for tests of tables and figures."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np

from qtrack.difference import Difference, Flip, Group, MovedLayer, Shift, Side
from qtrack.explanation import Execution, Explanation, NotAtHand, Skipped
from qtrack.ingredients import Drift
from qtrack.ledger import Strategy
from qtrack.outcome import Bars, Cost, Evaluation, LayerHistograms, LayerRow, Outcome
from qtrack.recipe import Recipe
from qtrack.recipe_diff import Changed

BLANK = {field.name: None for field in fields(Strategy)}


def strategy(stage, value=None, drop=(None, None, None), target_met=None, **values):
    """A strategy of a digits campaign; latency is beside a float one of 0.61 ms."""
    known = {
        "run_id": f"{stage:0<32}",
        "campaign": "c0ffee",
        "pipeline": "digits",
        "experiment": "digits",
        "stage": stage,
        "metric": "accuracy",
        "value": value,
        "target_met": target_met,
        "status": "FINISHED",
        "float_latency_ms": 0.61 if "latency_ms" in values else None,
        "max_drop": 0.02,
        "confidence": 0.95,
        "samples": 720,
    }
    known |= dict(zip(("drop", "drop_low", "drop_high"), drop, strict=True))
    return Strategy(**{**BLANK, **known, **values})


FLOAT = strategy(
    "float",
    0.9833,
    (0.0, -0.0027, 0.0027),
    True,
    size_bytes=133_800,
    float_layers=17,
    seconds=2.1,
    evaluations=1,
    forward_samples=960,
)
PTQ = strategy(
    "ptq", 0.1208, (0.8625, 0.8374, 0.8876), False, sqnr_db=-1.41, size_bytes=41_000, latency_ms=0.423,
    float_layers=0, worst_layer="blocks.1.depthwise", seconds=3.52, evaluations=1, forward_samples=1_280,
)  # fmt: skip
PER_CHANNEL = strategy(
    "per_channel", 0.9278, (0.0555, 0.0385, 0.0726), False, sqnr_db=14.2, size_bytes=44_120, latency_ms=0.43,
    float_layers=0, worst_layer="blocks.3.depthwise", seconds=3.61, evaluations=1, forward_samples=1_280,
)  # fmt: skip
QAT = strategy(
    "qat", 0.9764, (0.0069, -0.0021, 0.016), True, sqnr_db=21.8, size_bytes=44_120, latency_ms=0.43,
    float_layers=0, worst_layer="blocks.3.depthwise", seconds=143.5, evaluations=1, forward_samples=12_080,
)  # fmt: skip
FALLBACK = strategy(
    "fallback", 0.9722, (0.0111, 0.0011, 0.0212), None, sqnr_db=24.3, size_bytes=58_304, latency_ms=0.521,
    float_layers=3, worst_layer="blocks.0.project", seconds=22.8, evaluations=5, forward_samples=4_800,
)  # fmt: skip
BROKEN = strategy("broken", seconds=0.4, status="FAILED")
STRATEGIES = [FLOAT, PTQ, PER_CHANNEL, QAT, FALLBACK, BROKEN]


def row(index, layer, type="ConvReLU2d", dtype="int8", **values):
    return LayerRow(index, layer, type, dtype, params=16 + 1000 * index, macs=64, **values)


LAYERS = (
    row(0, "stem.conv", sqnr_db=38.04, own_sqnr_db=38.04, weight_sqnr_db=41.2, saturation=0.0004),
    row(1, "blocks.0.depthwise", sqnr_db=6.5, own_sqnr_db=-2.25, weight_sqnr_db=9.1, saturation=0.0),
    row(2, "blocks.0.project", "Conv2d", "float32"),
    row(3, "blocks.0.add", "add", sqnr_db=7.9, own_sqnr_db=45.6, saturation=0.031),
    row(4, "head", "Linear", sqnr_db=11.34, own_sqnr_db=60.0, weight_sqnr_db=40.0, saturation=0.0),
)
REPAIRED = (
    LAYERS[0],
    replace(LAYERS[1], sqnr_db=31.0, own_sqnr_db=30.5, weight_sqnr_db=38.0),
    row(2, "blocks.0.project", "Conv2d", sqnr_db=30.0, own_sqnr_db=33.3),
    replace(LAYERS[3], sqnr_db=29.0, own_sqnr_db=45.5),
    replace(LAYERS[4], sqnr_db=30.9),
)


def bars(values, edges):
    return Bars(np.histogram(values, edges)[0].astype(float), edges)


def histograms(seed, weights=True):
    values = np.random.default_rng(seed).normal(size=4000)
    edges = np.linspace(values.min(), values.max(), 65)
    pair = (bars(values, edges), bars(np.round(values / 0.1) * 0.1, edges))
    return LayerHistograms(pair if weights else None, pair)


def evaluation(predictions, labels):
    return Evaluation((predictions == labels).astype(float), labels, predictions)


def outcome(**changes):
    plain = {
        "recipe": Recipe(),
        "build": lambda: None,
        "example": None,
        "metric": "accuracy",
        "size_bytes": 1000,
    }
    plain |= {"validation": Evaluation(np.ones(8)), "cost": Cost(1.0, {}, 8, 1)}
    return Outcome(**{**plain, **changes})


def result(name="ptq", **changes):
    """A finished stage whose class 3 is mistaken for 8; what figures need, and no more."""
    labels = np.arange(200) % 10
    confused = np.where((labels == 3) & (np.arange(200) < 120), 8, labels)
    full = {"validation": evaluation(confused, labels), "layers": LAYERS}
    full["histograms"] = {"blocks.0.depthwise": histograms(0), "blocks.0.add": histograms(1, weights=False)}
    baseline = outcome(recipe=Recipe().with_mode("float"), validation=evaluation(labels, labels))
    return SimpleNamespace(name=name, outcome=outcome(**{**full, **changes}), baseline=baseline)


DIFFERENCE = Difference(
    first=Side("1" * 32, "ptq", "accuracy", 0.9, 200),
    second=Side("2" * 32, "per_channel", "accuracy", 0.93, 200),
    recipe=(
        Changed("default.weight.granularity", "per_tensor", "per_channel"),
        Changed("training.epochs", None, "4"),
    ),
    ingredients={
        "data": Group((Drift("data.calibration.content", "a" * 64, "b" * 64),), ("data.test.order",), ()),
        "weights": Group((), ("float_weights",), ()),
        "code": Group((), (), ()),
        "environment": Group((Drift("threads", "1", "2"),), (), ("version.torch", "cpu.model")),
    },
    parameters_equal=False,
    behaviour_equal=False,
    layers=(
        MovedLayer("head", ("int8", "float32"), (20.0, None), None, True),
        MovedLayer("block.0", ("int8", "int8"), (10.0, 14.25), 4.25, True),
        MovedLayer("block.1", ("int8", "int8"), (30.0, 30.01), 0.01, True),
        *(MovedLayer(f"block.{i}", ("int8", "int8"), (30.0, 29.0), -1.0, False) for i in range(2, 11)),
    ),
    unpaired="",
    flips=(
        *(Flip(i, 3, "better", (1, 3), (0.0, 1.0)) for i in range(0, 14, 2)),
        Flip(17, 2, "worse", (2, 0), (1.0, 0.0)),
        Flip(21, 3, "other", (0, 1), (0.0, 0.0)),
    ),
    shift=Shift(0.03, 0.001, 0.059),
)

EXPLANATION = Explanation(
    first=Execution("ptq", 0.9, Shift(0.0, -0.01, 0.01)),
    second=Execution("per_channel", 0.92, Shift(0.02, -0.001, 0.041)),
    swaps=(
        Execution("default.weight", 0.935, Shift(0.035, 0.002, 0.068)),
        Execution("threads", 0.9, Shift(0.0, -0.01, 0.01)),
    ),
    skipped=(Skipped("training", "the task has no training()"),),
    not_at_hand=(
        NotAtHand("data.calibration.content", "a", "b", "b"),
        NotAtHand("source.task", "a", "b", "c"),
    ),
    drifted_since=("version.torch",),
    recorded_change=0.03,
)
