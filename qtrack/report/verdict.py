"""What a set of strategies comes to, in a few sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qtrack.report.cells import Scale, size, size_unit

if TYPE_CHECKING:
    from qtrack.ledger import Strategy


def candidates(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Those that finished and quantize something: the float model is no answer."""
    return [
        s for s in strategies if s.status == "FINISHED" and s.worst_layer is not None and s.drop is not None
    ]


def best(strategies: Sequence[Strategy]) -> Strategy | None:
    """Of those that surely meet the target the smallest, then the one with the best metric.

    The target says what may be lost; within it, size is what quantization is for, and unlike latency it does
    not depend on the machine's mood.
    """
    met = [s for s in candidates(strategies) if s.target_met and s.size_bytes]
    return min(met, key=lambda s: (s.size_bytes, -(s.value or 0.0)), default=None)


def closest(strategies: Sequence[Strategy]) -> Strategy | None:
    """The one whose drop is smallest even at the bad end of its interval."""
    return min(candidates(strategies), key=lambda s: s.drop_high or 0.0, default=None)


def sentences(strategies: Sequence[Strategy]) -> Iterator[str]:
    """Which strategy to take, or that none will do."""
    if not candidates(strategies):
        yield "no stage quantized anything"
        return
    scale = scale_of(strategies)
    chosen, near = best(strategies), closest(strategies)
    if chosen is None and near is not None:
        sure = "" if all(s.target_met is False for s in candidates(strategies)) else " surely"
        yield f"no strategy{sure} meets the target; closest: {_described(near, scale)}"
    elif chosen is not None:
        yield f"smallest that surely meets the target: {_described(chosen, scale)}"


def scale_of(strategies: Iterable[Strategy]) -> Scale:
    """How these strategies' metric is written."""
    known = list(strategies)
    return Scale.of((s.value for s in known), max((s.samples or 0 for s in known), default=None))


def _described(strategy: Strategy, scale: Scale) -> str:
    unit, bytes_per_unit = size_unit([strategy.size_bytes])
    parts = [f"drop {scale.with_unit(strategy.drop)}, at worst {scale.text(strategy.drop_high)}"]
    parts += [f"{size(strategy.size_bytes, bytes_per_unit)} {unit}"] if strategy.size_bytes else []
    parts += [f"{strategy.float_layers} layers in float"] if strategy.float_layers else []
    return f"{strategy.stage} ({'; '.join(parts)})"
