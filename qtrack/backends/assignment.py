"""Which scheme each module of a model gets, as far as there are kernels for it.

Overrides are resolved here against the model's modules, so that "the last match wins" holds whatever
precedence the library has. What an override names exactly is done or refused; for the rest it is said what
stays float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from qtrack.backends.base import has_weights
from qtrack.errors import RecipeError
from qtrack.recipe import AnyScheme, Call, Float, Float16, Module, Recipe, Static, Torchao, WeightOnly

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
NO_STATIC_KERNEL = (*RECURRENT, *LOOKUPS)
DYNAMIC_KERNEL = (nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class UserModule(NamedTuple):
    """What the user's float model has under a name."""

    type: str
    params: int


@dataclass(frozen=True, eq=False)
class Assignment:
    """Schemes by module name, as the recipe says and as can be done."""

    wanted: Mapping[str, AnyScheme]
    schemes: Mapping[str, AnyScheme]
    modules: Mapping[str, UserModule]

    def stays_float(self, layers: Sequence[str], backend: str) -> tuple[str, ...]:
        """One line for each mode that some of these layers were asked to run in and do not."""
        left: dict[str, list[str]] = {}
        for layer in layers:
            name = layer.partition("#")[0]
            asked = _asked(self.wanted[name])
            if asked != "float":
                left.setdefault(asked, []).append(f"{name} ({self.modules[name].type})")
        return tuple(
            f"{_layers(len(names))} float, {backend} has no {asked} kernel for: {some(names)}"
            for asked, names in left.items()
        )


def torch_ao_has(module: nn.Module, scheme: AnyScheme) -> bool:
    """Has torch.ao a kernel for the module in that mode?"""
    if isinstance(module, nn.MultiheadAttention):
        return isinstance(scheme, WeightOnly | Float16)
    if not has_weights(module):
        return isinstance(scheme, Static)
    possible = {
        "static": not isinstance(module, NO_STATIC_KERNEL),
        "dynamic": isinstance(module, DYNAMIC_KERNEL),
        "weight_only": not isinstance(module, RECURRENT),
        "float16": not isinstance(module, RECURRENT) or isinstance(module, DYNAMIC_KERNEL),
    }
    return possible.get(scheme.mode, False)


def assign(
    model: nn.Module,
    recipe: Recipe,
    closed: Collection[str] = (),
    has_kernel: Callable[[nn.Module, AnyScheme], bool] = torch_ao_has,
) -> Assignment:
    """Resolve a recipe against a float model; raises RecipeError on what it names and cannot get.

    Integer kernels do not reach into modules that are ``closed``, nor into those that the recipe keeps whole.
    """
    _refuse_unknown(recipe, model)
    lineages = lineages_of(model)
    wanted = {name: recipe.scheme_for(lineage) for name, lineage in lineages.items()}
    closed = {*closed, *recipe.non_traceable}
    feasible = {
        name: _feasible(model.get_submodule(name), scheme, has_kernel, closed=_is_inside(name, closed))
        for name, scheme in wanted.items()
    }
    refuse_named(recipe, model, wanted, feasible)
    return Assignment(wanted, feasible, user_modules(model))


def user_modules(model: nn.Module) -> dict[str, UserModule]:
    """What a float model has under each name."""
    return {
        name: UserModule(type(module).__name__, sum(parameter.numel() for parameter in module.parameters()))
        for name, module in model.named_modules()
    }


def lineages_of(model: nn.Module) -> dict[str, tuple[Module, ...]]:
    """Each module's ancestors and itself, root first."""
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    return {name: tuple(Module(above, types[above]) for above in _ancestry(name)) for name in types if name}


def torchs_own(model: nn.Module) -> list[str]:
    """Modules of torch's that have parts, such as MultiheadAttention, whose code reads their weights."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("torch.nn.")
        and not isinstance(module, CONTAINERS)
        and any(True for _ in module.children())
    ]


def _layers(count: int) -> str:
    return "1 layer stays" if count == 1 else f"{count} layers stay"


def some(names: Sequence[str]) -> str:
    """The first few names, for people."""
    return ", ".join(names if len(names) <= 4 else [*names[:4], "..."])


def _asked(scheme: AnyScheme) -> str:
    """The mode, or the name of a configuration of torchao's."""
    return str(scheme.config.get("_type")) if isinstance(scheme, Torchao) else scheme.mode


def _ancestry(name: str) -> Iterator[str]:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        yield ".".join(parts[:end])


def _is_inside(name: str, closed: Collection[str]) -> bool:
    return any(above in closed for above in _ancestry(name))


def _feasible(
    module: nn.Module,
    scheme: AnyScheme,
    has_kernel: Callable[[nn.Module, AnyScheme], bool],
    *,
    closed: bool,
) -> AnyScheme:
    """The scheme, or float where nothing can carry it out."""
    if closed and not isinstance(scheme, WeightOnly | Float16):
        return Float()
    return scheme if has_kernel(module, scheme) else Float()


def _refuse_unknown(recipe: Recipe, model: nn.Module) -> None:
    known = dict(model.named_modules())
    for i, name in enumerate(recipe.non_traceable):
        if name not in known:
            raise RecipeError(f"recipe.non_traceable[{i}]: the model has no module {name!r}")


def refuse_named(
    recipe: Recipe, model: nn.Module, wanted: Mapping[str, AnyScheme], feasible: Mapping[str, AnyScheme]
) -> None:
    """What an override names exactly must be done, or refused in so many words."""
    for i, override in enumerate(recipe.overrides):
        name = override.layer
        if name is None or name not in wanted:
            continue
        module = model.get_submodule(name)
        holds_weights = has_weights(module) or isinstance(module, nn.MultiheadAttention)
        if wanted[name].mode != feasible[name].mode and holds_weights:
            asked = f"{_asked(wanted[name])} kernel for {name} ({type(module).__name__})"
            raise RecipeError(f"recipe.overrides[{i}]: {recipe.backend} has no {asked}")


def refuse_unmatched(recipe: Recipe, calls: Sequence[Call]) -> None:
    """An override that names a function, or one call, is for one that there is."""
    for i, override in enumerate(recipe.overrides):
        if override.names_calls and not any(map(override.matches, calls)):
            known = dict.fromkeys(call.function if override.function else call.name for call in calls)
            there = some(list(known)) or "none"
            raise RecipeError(f"recipe.overrides[{i}]: {override} matches no call; there are {there}")
