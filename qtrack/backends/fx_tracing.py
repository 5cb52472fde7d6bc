"""What can't be traced: gone round where the recipe leaves it in float, else explained in one line."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.ao.quantization.fx.tracer import QuantizationTracer


def untraceable(model: nn.Module, candidates: Collection[str], whole: Collection[str] = ()) -> list[str]:
    """Those candidates which can't be traced and must be left whole, besides those that are to be."""
    found = list(whole)
    while candidates and (culprit := _culprit(model, found)):
        above = [name for name in candidates if culprit == name or culprit.startswith(f"{name}.")]
        if not above or above[0] in found:
            break
        found.append(above[0])
    return found


def explain(cause: Exception, model: nn.Module, opaque: Collection[str]) -> str:
    """One line for an exception that preparing the model raised."""
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    culprit = _culprit(model, list(opaque))
    if culprit is None:
        return f"torch.ao could not prepare the model: {reason}"
    if not culprit:
        return (
            f"the model's own forward() can't be traced: {reason}; move what depends on data into a submodule"
        )
    kind = type(model.get_submodule(culprit)).__name__
    return (
        f"module {culprit!r} ({kind}) can't be traced: {reason}; to leave it in float, add to the recipe "
        f"overrides: [{{layer: {culprit}, scheme: float}}]"
    )


def _culprit(model: nn.Module, opaque: list[str]) -> str | None:
    """The innermost module where tracing fails, "" for the model itself; None where the fault is another."""
    tracer = Trail(opaque, [])
    try:
        tracer.trace(model)
    except Exception:  # the same failure again, this time with the way to it
        return tracer.path
    return None


class Trail(QuantizationTracer):
    """Remembers where it is."""

    path = ""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = before
        return result
