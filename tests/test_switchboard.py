"""Layers switched on one converted model give what converting anew with them in float gives."""

from functools import cache
from itertools import chain, combinations

import pytest
import torch
from test_fx import task_of
from tiny import Tiny
from torch import nn

from qtrack.backends.engines import using_engine
from qtrack.engine import quantize
from qtrack.errors import BackendError
from qtrack.recipe import Dynamic, Recipe, Static, WeightOnly, WeightSpec
from qtrack.sensitivity import Sensitivity

FX = Recipe(engine="x86")
PT2E = Recipe(backend="pt2e")
WITH_WEIGHTS = ("stem", "block.conv", "head")


class InPlace(nn.Module):
    """Writes into what other layers gave, where nothing fuses that away."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(36, 4)

    def forward(self, x):
        x = self.one(x)
        y = self.two(x)
        y += x
        return self.head(self.relu(self.pool(y)).flatten(1))


class Twice(nn.Module):
    """Calls one layer two times."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(144, 4)

    def forward(self, x):
        return self.head(self.two(torch.relu(self.two(self.one(x)))).flatten(1))


TASKS = {"tiny": Tiny(), "in place": task_of(InPlace), "twice": task_of(Twice)}


@cache
def sensitivity(name="tiny", recipe=FX):
    return Sensitivity(TASKS[name], recipe)


@cache
def board(name="tiny", recipe=FX):
    return sensitivity(name, recipe).board


def inputs(name="tiny"):
    return TASKS[name].inputs(TASKS[name].validation()[0])


def output(board, trace):
    found = board.program.output(trace.values)
    return found if isinstance(found, torch.Tensor) else found[0]


def mixed(off, name="tiny", recipe=FX):
    with using_engine(sensitivity(name, recipe).recipe.engine):
        return output(board(name, recipe), board(name, recipe).run(inputs(name), off))


def converted(off, name="tiny", recipe=FX):
    with using_engine(sensitivity(name, recipe).recipe.engine), torch.no_grad():
        return quantize(TASKS[name], recipe.keeping_float(*off)).quantized.model(*inputs(name))


def subsets(layers):
    return list(chain.from_iterable(combinations(layers, count) for count in range(len(layers) + 1)))


@pytest.mark.parametrize("off", subsets(WITH_WEIGHTS)[:-1], ids="+".join)
def test_a_mixture_gives_bit_by_bit_what_the_model_converted_for_it_gives(off):
    assert torch.equal(mixed(off), converted(off))


@pytest.mark.parametrize("off", [(), ("one",), ("two",), ("head",)], ids="+".join)
@pytest.mark.parametrize("name", ["in place", "twice"])
def test_it_does_so_with_operations_in_place_and_with_a_layer_that_is_called_twice(name, off):
    assert torch.equal(mixed(off, name), converted(off, name))


@pytest.mark.parametrize(
    "scheme",
    [Dynamic(), WeightOnly(), Static(weight=WeightSpec(granularity="per_channel"))],
    ids=lambda one: one.mode,
)
def test_it_does_so_in_other_schemes(scheme):
    recipe = FX.having(default=scheme)
    for off in subsets(board("tiny", recipe).layers)[:-1]:
        if set(off) <= set(WITH_WEIGHTS):
            assert torch.equal(mixed(off, "tiny", recipe), converted(off, "tiny", recipe))


def test_with_all_on_it_does_so_on_pt2e():
    assert torch.equal(mixed((), "tiny", PT2E), converted((), "tiny", PT2E))


@pytest.mark.parametrize("off", [("stem",), ("block.conv", "head")], ids="+".join)
def test_other_mixtures_do_so_on_pt2e_but_for_rounding_where_batch_norm_is_folded(off):
    assert torch.allclose(mixed(off, "tiny", PT2E), converted(off, "tiny", PT2E), atol=1e-5)


def test_with_all_off_it_is_the_float_network():
    with torch.no_grad():
        floating = Tiny().model()(*inputs())
    assert torch.allclose(mixed(board().layers), floating, atol=1e-5)  # BatchNorm is folded


@pytest.mark.parametrize("recipe", [FX, PT2E], ids=["fx", "pt2e"])
@pytest.mark.parametrize("name", TASKS)
def test_switching_gives_what_running_gives_however_often(name, recipe):
    switches = board(name, recipe)
    with using_engine(sensitivity(name, recipe).recipe.engine):
        for before in ((), switches.layers, switches.layers[:1]):
            trace = switches.run(inputs(name), before)
            for off in subsets(switches.layers)[:12] * 2:
                switched = output(switches, switches.switched(trace, off))
                assert torch.equal(switched, output(switches, switches.run(inputs(name), off)))


def test_switching_there_and_back_gives_the_same_again():
    trace = board().run(inputs(), ())
    there = board().switched(trace, {"stem"})
    assert torch.equal(output(board(), board().switched(there, ())), output(board(), trace))


def test_only_what_depends_on_a_switched_layer_is_computed():
    whole = board().run(inputs(), ())
    counts = {name: board().switched(whole, {name}).computed for name in board().layers}
    assert board().switched(whole, ()).computed == 0
    assert counts["head"] < counts["pool"] < counts["block.conv"] < counts["stem"] <= board().nodes
    assert counts["block.conv"] > counts["block.add"]


def test_of_an_unknown_layer_nothing_depends():
    assert board().switched(board().run(inputs(), ()), {"elsewhere"}).computed == 0


@pytest.mark.parametrize("recipe", [FX, PT2E], ids=["fx", "pt2e"])
def test_a_layer_that_is_called_twice_is_switched_as_one(recipe):
    switches = board("twice", recipe)
    assert switches.layers == ("one", "two", "head")
    assert [site.layer for site in switches.switches["two"]] == ["two", "two#2"]


def test_calls_of_functions_are_switched_by_their_names():
    assert board().layers == ("stem", "block.conv", "block.add", "pool", "head")


def test_a_trace_tells_its_memory_counting_shared_memory_once():
    trace = board().run(inputs(), board().layers)
    tensors = [value for value in trace.values.values() if isinstance(value, torch.Tensor)]
    largest = max(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert largest < trace.bytes < sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_a_backend_without_a_graph_is_refused_in_one_line():
    with pytest.raises(BackendError) as raised:
        Sensitivity(Tiny(), Recipe(backend="eager", engine="x86"))
    assert str(raised.value) == "backend 'eager': only graphs can be switched layer by layer: take fx or pt2e"
