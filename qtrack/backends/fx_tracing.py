"""What can't be traced: gone round where the recipe leaves it in float, else explained in one line."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn
from torch.fx import Tracer

from qtrack.backends.messages import first_line


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
    reason = first_line(cause)
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
    found = failure(model, opaque)
    return found[0] if found else None


def failure(model: nn.Module, opaque: Collection[str]) -> tuple[str, Exception] | None:
    """The innermost module where tracing fails, "" for the model itself, and how; None where it does not."""
    tracer = Trail(opaque)
    try:
        tracer.trace(model)
    except Exception as cause:  # torch.fx raises whatever the model's code led to
        return tracer.path, cause
    return None


class Trail(Tracer):
    """Looks into what torch.ao's own tracer looks into, and remembers where it is."""

    path = ""

    def __init__(self, whole: Collection[str], leaves: Collection[type] = ()) -> None:
        super().__init__()
        self.whole = whole
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        fused = m.__module__.startswith("torch.ao.nn")
        return own or fused or module_qualified_name in self.whole or type(m) in self.leaves

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.path = self.path, self.path_of_module(m)
        result = super().call_module(m, forward, args, kwargs)
        self.path = before
        return result
