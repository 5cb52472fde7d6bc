"""What the execution of a recipe leaves behind: plain data, and the quantized model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtrack.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerRow:
    """One layer of the layer table; None where a value does not apply.

    The reference is the float model, fused as the quantized one is; values are over all samples compared.
    SQNR is signal to quantization-noise ratio in decibels, None where both sides are equal.
    """

    index: int
    """Position in the float model's execution order; the same in every recipe for the same model."""
    layer: str
    type: str
    dtype: str
    """What it really ran in: int8, int8_dynamic, int8_weight, float16_weight, float32."""
    params: int
    macs: int | None
    """Multiply-accumulates for one sample."""
    sqnr_db: float | None = None
    """Of the output, with the errors of all layers before it."""
    own_sqnr_db: float | None = None
    """Of the output, with everything before it in float: the layer's own share."""
    weight_sqnr_db: float | None = None
    cosine: float | None = None
    nmse: float | None = None
    max_abs_error: float | None = None
    saturation: float | None = None
    """Share of the output's elements at the ends of the quantized range."""
    range_variation: float | None = None
    """Standard deviation over samples of the input's range, relative to its mean.

    Over all samples where the input is another layer's output, else over the first ones of each batch.
    """
    bad_samples: float | None = None
    """Share of samples whose output has an SQNR below 10 dB (BAD_SAMPLE_DB in numerics)."""
    weight_channel_sqnr_db: float | None = None
    """Of the weight's worst output channel, which ``worst_channel`` names."""
    worst_channel: int | None = None
    low: float | None = None
    """Smallest and largest element of the float output."""
    high: float | None = None
    zeros: float | None = None
    """Share of the float output's elements that are zero, estimated."""
    outlier_ratio: float | None = None
    """Largest magnitude of the float output over its 99.9th percentile, estimated within 12.5%."""
    min_max_db: float | None = None
    """SQNR of the float output quantized by this observer, without any error before: estimated.

    Each sample counts alike; bits and symmetry are those of the recipe's default, and so below.
    """
    percentile_db: float | None = None
    """With 0.9999 of all values within the range."""
    histogram_db: float | None = None
    nonfinite_samples: int = 0
    """Samples with NaN or infinity on either side, left out of all other figures."""
    worst_samples: tuple[int, ...] = ()
    """Positions of the samples with the largest relative error, worst first."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """The user's own comparison functions."""

    def to_dict(self) -> dict[str, Any]:
        """Plain fields, the user's own measures among them."""
        fields = {name: value for name, value in vars(self).items() if name != "measures"}
        return {**fields, **self.measures}


class Bars(NamedTuple):
    """A histogram: ``counts`` between ``edges`` (one more)."""

    counts: NDArray[np.float64]
    edges: NDArray[np.float64]


@dataclass(frozen=True)
class LayerHistograms:
    """Distributions of one layer, float and quantized over the same bins."""

    weight: tuple[Bars, Bars] | None
    activation: tuple[Bars, Bars]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model did on each sample of a split, in the split's order."""

    scores: NDArray[np.float64]
    labels: NDArray[np.int64] | None = None
    predictions: NDArray[np.int64] | None = None
    output_digest: str = ""
    """SHA-256 over all outputs: the digest of behaviour."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """The task's own corpus metrics."""
    nonfinite: int = 0
    """Samples whose output holds NaN or infinity."""

    @property
    def value(self) -> float:
        """The metric: the mean score."""
        return float(self.scores.mean())


Until = Callable[[NDArray[np.float64]], bool]
"""Given the scores of the first samples, after each batch: are they enough?"""


class Stopped(Exception):
    """An evaluation on the validation split that was not to go on: the scores until then, what they took."""

    def __init__(self, scores: NDArray[np.float64], cost: Cost) -> None:
        super().__init__(f"stopped after {len(scores)} samples")
        self.scores = scores
        self.cost = cost


@dataclass(frozen=True)
class Latency:
    """Wall time of one call on one batch, with the float model's in alternation with it."""

    median_ms: float
    iqr_ms: float
    float_median_ms: float
    batch_size: int
    threads: int
    calls: int


@dataclass(frozen=True)
class Cost:
    """What it took to get here."""

    seconds: float
    phases: Mapping[str, float]
    """Seconds by phase."""
    forward_samples: int
    """Samples that went through a model, whatever for."""
    evaluations: int
    """Passes over the validation split."""

    def __add__(self, other: Cost) -> Cost:
        phases = {
            name: self.phases.get(name, 0.0) + other.phases.get(name, 0.0)
            for name in {**self.phases, **other.phases}
        }
        return Cost(
            self.seconds + other.seconds,
            phases,
            self.forward_samples + other.forward_samples,
            self.evaluations + other.evaluations,
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """A quantized model with everything that was measured on it."""

    recipe: Recipe
    build: Callable[[], nn.Module] = field(repr=False)
    """Gives the quantized model: at hand after an execution, else made again."""
    example: Any
    """Inputs of one batch, as the model takes them; None where this was read from a record."""
    metric: str
    validation: Evaluation
    cost: Cost
    size_bytes: int
    """Of all parameters, buffers, scales and zero-points as they are stored."""
    test: Evaluation | None = None
    latency: Latency | None = None
    layers: tuple[LayerRow, ...] = ()
    sqnr_db: float | None = None
    """Of the network's output, over the calibration samples."""
    histograms: Mapping[str, LayerHistograms] = field(default_factory=dict)
    """Of the worst layers."""
    qparams: Mapping[str, Any] = field(default_factory=dict)
    """Scales and zero-points by layer: plain lists."""
    float_layers: tuple[str, ...] = ()
    """Layers with weights that ran in float."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """parameters (scales, zero-points, quantized weights), behaviour (outputs), float_weights."""
    warnings: tuple[str, ...] = ()

    @cached_property
    def model(self) -> nn.Module:
        """The quantized model itself."""
        return self.build()

    @property
    def value(self) -> float:
        """The metric on the validation split."""
        return self.validation.value

    @property
    def worst_layer(self) -> LayerRow | None:
        """The layer with the largest share of error of its own."""
        ranked = self.by_own_share()
        return ranked[0] if ranked else None

    def by_own_share(self) -> tuple[LayerRow, ...]:
        """Quantized layers, the largest share of error of their own first."""
        rows = [row for row in self.layers if row.own_sqnr_db is not None]
        return tuple(sorted(rows, key=lambda row: row.own_sqnr_db or 0.0))
