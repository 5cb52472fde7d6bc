"""What of a model's forward() can be known without running it: which modules feed which.

The largest modules that torch.fx can trace are traced, each by itself; around them and inside those that it
cannot, nothing is known. torch's own modules are not looked into, as torch.ao does in FX mode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from torch import nn
from torch.fx import Graph, Node

from qtrack.backends.fx_tracing import Trail


class Traced:
    """One part of a model and what happens in it."""

    def __init__(self, prefix: str, model: nn.Module, graph: Graph) -> None:
        self.prefix = prefix
        self.model = model
        self.graph = graph
        self.calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")

    def name(self, node: Node) -> str:
        """The module's name in the whole model."""
        return f"{self.prefix}.{node.target}" if self.prefix else str(node.target)

    def once(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if it is called nowhere else."""
        if node.op != "call_module" or self.calls[str(node.target)] != 1:
            return None
        return self.model.get_submodule(str(node.target))


def traced(
    model: nn.Module, prefix: str = "", *, whole: Collection[str] = (), leaves: Collection[type] = ()
) -> Iterator[Traced]:
    """The parts of a model that can be traced, those inside of what cannot among them.

    Not looked into are modules of the types that are ``leaves``, and those named to be kept ``whole``.
    """
    left = list(whole)
    while True:
        tracer = Trail(left, leaves)
        try:
            graph = tracer.trace(model)
        except Exception:  # torch.fx raises whatever the model's code led to
            if not tracer.path or tracer.path in left:
                left = [name for name, _ in model.named_children()]
                break
            left.append(tracer.path)
            continue
        yield Traced(prefix, model, graph)
        break
    for name in (name for name in left if name not in whole):
        child = model.get_submodule(name)
        if any(True for _ in child.children()):
            inside = [one.removeprefix(f"{name}.") for one in whole if one.startswith(f"{name}.")]
            below = f"{prefix}.{name}" if prefix else name
            yield from traced(child, below, whole=inside, leaves=leaves)
