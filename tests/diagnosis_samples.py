"""Fabricated diagnoses, for tests of what is shown of them."""

from dataclasses import replace

from qtrack.finding import Diagnosis, Figure, Finding, Legs, Remedy, Worked
from qtrack.recipe import Recipe
from qtrack.statistics import Drop

PER_CHANNEL = Remedy(
    "per_channel",
    gain=0.83,
    cost=1.0,
    why="each output channel gets a scale of its own",
    recipe=Recipe(engine="x86").with_weights(granularity="per_channel"),
    worked=Worked(2, 3),
)
OBSERVERS = Remedy(
    "observers",
    {"kind": "histogram", "layers": ["blocks.1.project", "blocks.2.project", "blocks.3.project"]},
    gain=0.05,
    cost=1.2,
    why="the range that loses least squared error",
)
FALLBACK = Remedy("fallback", {"max_layers": 3}, gain=0.95, cost=6.0, why="the worst layers stay in float")

FINDINGS = (
    Finding(
        "per-channel",
        "fault",
        "one scale per tensor does not serve all channels of 5 layers: their ranges lie up to a factor of "
        "130 apart, so that the small channels have no more than two bits left",
        cause="per-tensor weights",
        figures=(Figure("spread of ranges", 130.0), Figure("weight SQNR gained", 21.4, "dB")),
        threshold="10 dB, half of the gap between the two on well-behaved networks",
        confidence=0.9,
        layers=("blocks.1.project", "blocks.1.depthwise", "blocks.2.project", "stem", "head"),
        remedies=(PER_CHANNEL, FALLBACK),
    ),
    Finding(
        "observer",
        "remark",
        "outliers stretch the range of 3 layers",
        figures=(Figure("outlier ratio", 4.2), Figure("histogram", "+3.1 dB"), Figure("not measured", None)),
        threshold="3 dB",
        confidence=0.6,
        layers=("blocks.1.project", "blocks.2.project", "blocks.3.project"),
        remedies=(OBSERVERS,),
    ),
    *(Finding(check, "fine", "as it should be") for check in ("fusion", "reduce_range", "calibration")),
    Finding("precision ladder", "not checked", "fx has no weight_only for convolutions on this engine"),
    Finding("redraw", "not checked", "the calibration split has too few samples to draw from"),
)
BAD = Diagnosis(
    subject="digits-20261124-073332-4e3e/ptq",
    category="data-insensitive",
    text="weights alone lose nearly all that is lost, and most samples are affected",
    metric="accuracy",
    float_value=0.9944,
    value=0.3889,
    drop=Drop(0.6056, 0.5681, 0.6403, 0.95, 720),
    legs=Legs(0.4014, 0.9903, 0.3903),
    findings=FINDINGS,
    remedies=(PER_CHANNEL, FALLBACK, OBSERVERS),
    seconds=6.43,
    forward_samples=12_340,
    recipe_digest="ab" * 32,
)
HEALTHY = replace(
    BAD,
    category="healthy",
    text="nothing is wrong",
    value=0.9931,
    drop=Drop(0.0013, -0.0021, 0.0047, 0.95, 720),
    legs=Legs(None, None, 0.9931),
    findings=FINDINGS[2:5],
    remedies=(),
)
