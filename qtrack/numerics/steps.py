"""How a network is run so that one can look inside: step by step, in the order in which it executes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Inputs = tuple[Any, ...] | dict[str, Any]
OUTPUT = "output"
"""The name of the step that hands out the network's own output."""


@dataclass(frozen=True, eq=False)
class Step:
    """One layer as it ran: the tensors that went in, what came out, and a way to run it on others."""

    node: str
    inputs: tuple[Tensor, ...]
    output: Any
    rerun: Callable[[tuple[Tensor, ...]], Any]


class Runner(Protocol):
    """A network that can be run many times."""

    def run(self, inputs: Inputs, wanted: Collection[str]) -> Iterator[Step]:
        """The wanted steps in execution order, and last the one named OUTPUT."""


def cannot_rerun(*arguments: Any) -> Any:
    raise AssertionError("inputs and outputs of a network are no layers")
