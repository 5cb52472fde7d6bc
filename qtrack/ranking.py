"""Which layers a quantized model's error comes from, in several measures side by side: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal, NamedTuple

Measure = Literal["own", "output", "loss", "alone", "back"]
ONE_SWEEP: tuple[Measure, ...] = ("own", "output", "loss")
"""Found for all layers at once."""
EXACT: tuple[Measure, ...] = ("alone", "back")
"""Found by switching one layer at a time."""


@dataclass(frozen=True)
class Share:
    """One layer; all measures are larger where the layer is worse, and None where they were not taken."""

    layer: str
    type: str
    params: int
    own: float
    """Noise over signal of the layer's own output, everything before it in float."""
    output: float | None = None
    """Noise over signal that this makes at the network's output, to first order: mean over samples."""
    loss: float | None = None
    """Mean square of the change of a sample's loss, to first order."""
    alone: float | None = None
    """Noise over signal at the network's output with this layer alone quantized; each sample at most 1."""
    back: float | None = None
    """What of that noise goes away when this layer alone goes back to float and all others stay."""


class Correlation(NamedTuple):
    """How alike two measures rank the layers, from -1 to 1; None where too few layers have both."""

    first: Measure
    second: Measure
    value: float | None


@dataclass(frozen=True)
class Ranking:
    """All quantized layers, in execution order."""

    shares: tuple[Share, ...]
    samples: int
    forward_samples: int
    """Samples that went through a network for it, float and quantized counted apart."""
    seconds: float
    exact_forward_samples: int = 0
    """Of these, what the exact measures took."""
    exact_seconds: float = 0.0

    def worst_first(self) -> tuple[Share, ...]:
        """By the noise at the network's output; those without it follow, by their own."""
        return tuple(sorted(self.shares, key=_worst))

    def by(self, measure: Measure) -> tuple[str, ...]:
        """Layers, the worst first; those without this measure are left out."""
        known = [share for share in self.shares if getattr(share, measure) is not None]
        return tuple(share.layer for share in sorted(known, key=lambda one: -getattr(one, measure)))

    def measures(self) -> tuple[Measure, ...]:
        """Those that were taken."""
        return tuple(
            measure
            for measure in (*ONE_SWEEP, *EXACT)
            if any(getattr(share, measure) is not None for share in self.shares)
        )

    def correlation(self, first: Measure, second: Measure) -> float | None:
        """Spearman's rank correlation over the layers that have both; None where fewer than three have."""
        from scipy.stats import spearmanr

        pairs = [
            (getattr(one, first), getattr(one, second))
            for one in self.shares
            if getattr(one, first) is not None and getattr(one, second) is not None
        ]
        if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
            return None
        found = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        return found if math.isfinite(found) else None

    def with_exact(
        self, alone: Mapping[str, float], back: Mapping[str, float], forward_samples: int, seconds: float
    ) -> Ranking:
        """The same with the measures of the exact mode, at their cost."""
        shares = tuple(
            replace(one, alone=alone.get(one.layer), back=back.get(one.layer)) for one in self.shares
        )
        return Ranking(
            shares,
            self.samples,
            self.forward_samples + forward_samples,
            self.seconds + seconds,
            self.exact_forward_samples + forward_samples,
            self.exact_seconds + seconds,
        )

    def correlations(self) -> tuple[Correlation, ...]:
        """Of every two measures that were taken."""
        pairs = combinations(self.measures(), 2)
        return tuple(Correlation(first, second, self.correlation(first, second)) for first, second in pairs)

    def rows(self) -> list[dict[str, Any]]:
        """For a table; MLflow compares runs by its second column."""
        return [{"layer": share.layer, "output": share.output} | asdict(share) for share in self.shares]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: the layers worst first."""
        return {
            **asdict(self),
            "shares": [asdict(share) for share in self.worst_first()],
            "correlations": [correlation._asdict() for correlation in self.correlations()],
        }


def _worst(share: Share) -> tuple[bool, float, float]:
    return share.output is None, -(share.output or 0.0), -share.own
