"""Where a model passes from float to integers and back: stubs around each static layer.

A layer takes integers from the stub before it and hands floats on from the stub behind it, so the code
between the layers sees nothing but floats and may do whatever it likes. Between two layers the stubs fall
away where the traced graph shows that nothing else reads what passes between them, and both want the same
activations: what the second one's stub would observe is then what the first one's observer sees, but for
what a pool or an activation between them cuts off.

Where the user has placed stubs none is added. A layer of theirs that is to stay in float then gets an island:
it takes floats, whatever comes, and gives integers where integers came.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, QuantWrapper
from torch.fx import Node

from qtrack.backends.base import has_weights, replace_module
from qtrack.backends.eager_graph import HEADS, readers
from qtrack.backends.torch_ao import layer_qconfig
from qtrack.backends.tracing import Traced
from qtrack.recipe import AnyScheme, Static

WITHOUT_WEIGHTS = (
    *(nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.ELU, nn.Hardswish, nn.LeakyReLU),
)
"""Layers that have integer kernels of their own and no weights to quantize."""
Ends = Mapping[Node, Node]
"""The last node of what was fused, by its first."""
STUBS = (QuantStub, DeQuantStub)
PLACED = (*STUBS, QuantWrapper)


class Island(nn.Module):
    """A float layer among integer ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.quant = QuantStub()

    def forward(self, x: Tensor) -> Tensor:
        if x.is_quantized:
            return self.quant(self.module(x.dequantize()))  # type: ignore[no-any-return]
        y: Tensor = self.module(x)
        return y if self.quantizes() else self.quant(y)  # before conversion, so that it is observed

    def quantizes(self) -> bool:
        """Has its stub been converted?"""
        return not isinstance(self.quant, QuantStub)


def has_stubs(model: nn.Module) -> bool:
    """Has the user decided where integers begin and end?"""
    return any(isinstance(module, PLACED) for module in model.modules())


def place(
    model: nn.Module, schemes: Mapping[str, AnyScheme], plan: Sequence[tuple[Traced, Ends]], *, training: bool
) -> list[str]:
    """Wrap every static layer of a fused model; the result is the wrappers' names."""
    modules = [(n, m) for n, m in model.named_modules() if not isinstance(m, FloatFunctional)]
    wrapped = [name for name, module in modules if _is_layer(module, schemes.get(name))]
    for name in wrapped:
        module = model.get_submodule(name)
        _observed(module, schemes[name], training=training)
        replace_module(model, name, QuantWrapper(module))
    for first, second in _joints(plan, schemes, set(wrapped)):
        model.get_submodule(first).dequant = nn.Identity()
        model.get_submodule(second).quant = nn.Identity()
    return wrapped


def respect(
    model: nn.Module, schemes: Mapping[str, AnyScheme], default: Static, *, training: bool
) -> list[str]:
    """Observe what stands between the user's stubs; the result is the names of the islands."""
    islands = []
    for name, module in list(model.named_modules()):
        scheme = schemes.get(name, default)
        if isinstance(module, PLACED):
            _observed(module, scheme if isinstance(scheme, Static) else default, training=training)
        elif _is_layer(module, scheme):
            _observed(module, scheme, training=training)
        elif has_weights(module) and isinstance(module, HEADS):
            islands.append(name)
    for name in islands:
        island = Island(model.get_submodule(name)).train(model.training)
        _observed(island.quant, default, training=training)
        replace_module(model, name, island)
    return islands


def _is_layer(module: nn.Module, scheme: AnyScheme | None) -> bool:
    """Does it run on integers of its own?"""
    if not isinstance(scheme, Static):
        return False
    head = module[0] if isinstance(module, _FusedModule) else module
    return type(head) in (*HEADS, *WITHOUT_WEIGHTS, FloatFunctional)  # of a subclass torch.ao knows nothing


def _observed(module: nn.Module, scheme: AnyScheme, *, training: bool) -> None:
    head = module[0] if isinstance(module, _FusedModule) else module
    qconfig = layer_qconfig(head, scheme, training=training)
    for part in (module, *(module if isinstance(module, _FusedModule) else ())):
        part.qconfig = qconfig


def _joints(
    plan: Sequence[tuple[Traced, Ends]], schemes: Mapping[str, AnyScheme], wrapped: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Layers of which the first feeds the second with integers."""
    for part, ends in plan:
        layers = {node: part.name(node) for node in part.graph.nodes if part.once(node) is not None}
        layers = {node: name for node, name in layers.items() if name in wrapped}
        for node, name in layers.items():
            found = readers(ends.get(node, node), layers.__contains__, part) or ()
            if all(_alike(schemes[name], schemes[layers[reader]]) for reader in found):
                yield from ((name, layers[reader]) for reader in found)


def _alike(one: AnyScheme, other: AnyScheme) -> bool:
    return isinstance(one, Static) and isinstance(other, Static) and one.activation == other.activation
