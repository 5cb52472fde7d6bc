"""What each backend makes of each operator, found out by trying it on this machine.

An operator stands behind a layer that is quantized, so that it is given what it would be given in a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from qtrack.backends import load_backend
from qtrack.backends.aten import FUSED_ACTIVATIONS, WEIGHTED, function_of, is_conversion
from qtrack.backends.capabilities import CAPABILITIES, faults, has_engines
from qtrack.backends.engines import default_engine, using_engine
from qtrack.backends.moves import moves_data
from qtrack.errors import BackendError
from qtrack.numerics import compare
from qtrack.recipe import Dynamic, Float16, Recipe, Static, WeightOnly, WeightSpec

IMAGE, ROWS, SERIES, VOLUME = (2, 4, 6, 6), (2, 8), (2, 4, 8), (2, 4, 4, 4, 4)
PER_CHANNEL = WeightSpec(granularity="per_channel")
SCHEMES: dict[str, Any] = {
    "static": Static(),
    "dynamic": Dynamic(weight=PER_CHANNEL),
    "weight_only": WeightOnly(weight=PER_CHANNEL),
    "float16": Float16(),
}
MODES = {
    "int8": "static",
    "int8_dynamic": "dynamic",
    "int8_weight": "weight_only",
    "float16_weight": "float16",
}
"""The mode that a layer's ``dtype`` in the layer table stands for."""


ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.ELU, nn.PReLU),
    *(nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh),
)


class Operator(NamedTuple):
    """A module or a function, and the shape of what comes in."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


class Trial(NamedTuple):
    """What one backend made of an operator."""

    operator: str
    backend: str
    modes: tuple[str, ...]
    """Those in which it ran on fewer bits, each with a line in the layer table."""
    refused: Mapping[str, str]
    """Modes in which the backend refuses the network, with its reason."""
    otherwise: str
    """What becomes of it where it has no line as quantized: ``fused``, ``passes``, ``float``."""

    def __str__(self) -> str:
        said = [*self.modes, *(f"{mode} refused" for mode in self.refused)]
        return ", ".join(said) or self.otherwise


class _Calls(nn.Module):
    """A function as a module, called with its input as often as it takes tensors."""

    def __init__(self, function: Callable[..., Tensor], count: int = 1) -> None:
        super().__init__()
        self.function = function
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return self.function(*[x] * self.count)


class _Weighted(nn.Module):
    """A function with a weight of the module's own."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


class _Calling(nn.Module):
    """A layer that takes or gives more than one plain tensor, called as it needs to be."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def _first(layer: Any, x: Tensor) -> Tensor:
    """Of a recurrent layer, without its last state."""
    output: Tensor = layer(x)[0]
    return output


def _looked_up(layer: Any, x: Tensor) -> Tensor:
    """By indices that depend on the input."""
    rows: Tensor = layer((x > 0).long())
    return rows


def _attended(layer: Any, x: Tensor) -> Tensor:
    output: Tensor = layer(x, x, x, need_weights=False)[0]
    return output


class _Probe(nn.Module):
    """The operator behind a layer."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        size = operator.shape[-1]
        images = len(operator.shape) == 4
        self.first = nn.Conv2d(operator.shape[1], operator.shape[1], 1) if images else nn.Linear(size, size)
        self.op = operator.build()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.op(self.first(x))
        return result


def _functions() -> Iterator[Operator]:
    def of(name: str, function: Callable[..., Tensor], count: int = 1, shape: Any = IMAGE) -> Operator:
        return Operator(name, lambda: _Calls(function, count), shape)

    yield of("x + y", lambda x, y: x + y, 2)
    yield of("torch.add", torch.add, 2)
    yield of("x * y", lambda x, y: x * y, 2)
    yield of("x - y", lambda x, y: x - y, 2)
    yield of("x / 2", lambda x: x / 2)
    yield of("torch.cat", lambda x, y: torch.cat((x, y), 1), 2)
    yield of("torch.matmul", lambda x, y: torch.matmul(x, y), 2)
    yield of("F.relu", F.relu)
    yield of("F.relu6", F.relu6)
    yield of("F.hardswish", F.hardswish)
    yield of("F.leaky_relu", F.leaky_relu)
    yield of("F.gelu", F.gelu)
    yield of("torch.sigmoid", torch.sigmoid)
    yield of("torch.tanh", torch.tanh)
    yield of("F.softmax", lambda x: F.softmax(x, -1))
    yield of("F.max_pool2d", lambda x: F.max_pool2d(x, 2))
    yield of("F.avg_pool2d", lambda x: F.avg_pool2d(x, 2))
    yield of("F.adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1))
    yield of("F.interpolate", lambda x: F.interpolate(x, scale_factor=2.0))
    yield of("torch.mean", lambda x: x.mean(-1))
    yield of("torch.flatten", lambda x: torch.flatten(x, 1))
    yield of("x.transpose", lambda x: x.transpose(1, 2))
    yield of("scaled_dot_product_attention", F.scaled_dot_product_attention, 3, SERIES)
    yield Operator("F.linear", lambda: _Weighted(F.linear, 3, 8), ROWS)
    yield Operator("F.conv2d", lambda: _Weighted(F.conv2d, 3, 4, 3, 3), IMAGE)


def _modules() -> Iterator[Operator]:
    yield Operator("Linear", lambda: nn.Linear(8, 3), ROWS)
    yield Operator("Conv1d", lambda: nn.Conv1d(4, 3, 3), SERIES)
    yield Operator("Conv2d", lambda: nn.Conv2d(4, 3, 3), IMAGE)
    yield Operator("Conv3d", lambda: nn.Conv3d(4, 3, 3), VOLUME)
    yield Operator("ConvTranspose1d", lambda: nn.ConvTranspose1d(4, 4, 2), SERIES)
    yield Operator("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 4, 2), IMAGE)
    yield Operator("LSTM", lambda: _Calling(nn.LSTM(8, 5, batch_first=True), _first), SERIES)
    yield Operator("GRU", lambda: _Calling(nn.GRU(8, 5, batch_first=True), _first), SERIES)
    yield Operator("LSTMCell", lambda: _Calling(nn.LSTMCell(8, 5), _first), ROWS)
    yield Operator(
        "MultiheadAttention",
        lambda: _Calling(nn.MultiheadAttention(8, 2, batch_first=True), _attended),
        SERIES,
    )
    yield Operator("Embedding", lambda: _Calling(nn.Embedding(4, 8), _looked_up), ROWS)
    yield Operator("EmbeddingBag", lambda: _Calling(nn.EmbeddingBag(4, 8, mode="sum"), _looked_up), ROWS)
    yield Operator("BatchNorm2d", lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), IMAGE)
    yield Operator("LayerNorm", lambda: nn.LayerNorm(8), ROWS)
    yield Operator("GroupNorm", lambda: nn.GroupNorm(2, 4), IMAGE)
    yield Operator("InstanceNorm2d", lambda: nn.InstanceNorm2d(4, affine=True), IMAGE)
    for activation in ACTIVATIONS:
        yield Operator(activation.__name__, activation, IMAGE)
    yield Operator("Softmax", lambda: nn.Softmax(-1), ROWS)
    yield Operator("Dropout", nn.Dropout, IMAGE)
    yield Operator("MaxPool2d", lambda: nn.MaxPool2d(2), IMAGE)
    yield Operator("AvgPool2d", lambda: nn.AvgPool2d(2), IMAGE)
    yield Operator("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d(1), IMAGE)
    yield Operator("Upsample", lambda: nn.Upsample(scale_factor=2), IMAGE)
    yield Operator("PixelShuffle", lambda: nn.PixelShuffle(2), IMAGE)


OPERATORS = (*_modules(), *_functions())


def trials(backend: str) -> Iterator[Trial]:
    """Try every operator in each mode of the backend; raises BackendUnavailable where it is not installed."""
    load_backend(backend)
    for operator in OPERATORS:
        yield _trial(operator, backend)


def _trial(operator: Operator, backend: str) -> Trial:
    ran: set[str] = set()
    refused: dict[str, str] = {}
    otherwise = "float"
    for mode in (mode for mode in SCHEMES if mode in CAPABILITIES[backend]["mode"]):
        try:
            dtypes, made_of = _tried(operator, _recipe(backend, mode))
        except BackendError as error:
            refused[mode] = str(error).splitlines()[0]
            continue
        ran |= {MODES[dtype] for dtype in dtypes if dtype in MODES}
        otherwise = made_of if mode == "static" else otherwise
    return Trial(operator.name, backend, tuple(mode for mode in SCHEMES if mode in ran), refused, otherwise)


def _recipe(backend: str, mode: str) -> Recipe:
    recipe = Recipe(
        backend=backend,
        engine=default_engine() if has_engines(backend) else None,
        default=SCHEMES[mode],
    )
    assert not faults(recipe)
    return recipe


def _tried(operator: Operator, recipe: Recipe) -> tuple[set[str], str]:
    """The types of the operator's lines in the layer table, and what became of it where it has none."""
    torch.manual_seed(0)
    model, example = _Probe(operator).eval(), (torch.randn(operator.shape),)
    with using_engine(recipe.engine), torch.no_grad():
        backend = load_backend(recipe.backend)
        prepared = backend.prepare(model, recipe, example)
        prepared.model(*example)
        quantized = backend.convert(prepared, example)
        rows = compare(quantized.pair, [example]).rows
        made_of = _made_of(quantized.model, example)
    own = [row for row in rows if row.layer.partition("#")[0].partition(".")[0] == "op"]
    return {row.dtype for row in own if row.own_sqnr_db is not None or row.sqnr_db is not None}, made_of


def _made_of(model: nn.Module, example: tuple[Tensor, ...]) -> str:
    """``fused`` into the layer before, ``passes`` on integers that it does not compute anew, or ``float``."""
    if isinstance(program := getattr(model, "program", None), GraphModule):
        return _made_in_export(program)
    if not isinstance(model, GraphModule):
        return "fused" if isinstance(model.get_submodule("op"), nn.Identity) else "float"
    seen = _Outputs(model)
    seen.run(*example)
    return "passes" if any(seen.quantized) else "float" if seen.quantized else "fused"


def _made_in_export(program: GraphModule) -> str:
    """The same in an exported graph, whose operators stand between conversions."""
    operators = [node for node in program.graph.nodes if function_of(node)]
    last = operators[-1]
    before = last.all_input_nodes[0]
    if function_of(last) in FUSED_ACTIVATIONS and function_of(before) in WEIGHTED:
        return "fused"
    both_sides = is_conversion(before) and any(map(is_conversion, last.users))
    return "passes" if both_sides and moves_data(function_of(last)) else "float"


class _Outputs(Interpreter):
    """Notes of each node of the operator whether it gives integers."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.quantized: list[bool] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op.startswith("call") and not n.name.startswith(("first", "quantize_per", "dequantize")):
            self.quantized.append(isinstance(value, Tensor) and value.is_quantized)
        return value
