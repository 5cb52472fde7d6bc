"""What happens to the float model before it is quantized, as a recipe's ``transforms`` say.

They rewrite the float model and know of no library, so that every backend carries them out. The names of
modules stay the user's. Bias correction needs the quantized model as well: the engine quantizes once, has the
biases corrected, and quantizes again; here it only gets its room.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

from torch import nn

from qtrack.backends.sameness import computes_the_same
from qtrack.errors import BackendError
from qtrack.recipe import Recipe
from qtrack.task import Inputs
from qtrack.transforms.correct_bias import correct_bias, make_room
from qtrack.transforms.equalize import adjacent_pairs, equalize
from qtrack.transforms.fold_batch_norm import fold_batch_norm, unfused_batch_norms

TRANSFORMS: dict[str, Callable[[nn.Module, Collection[str]], None]] = {
    "fold_batch_norm": fold_batch_norm,
    "equalize": equalize,
    "correct_bias": make_room,
}

__all__ = ["adjacent_pairs", "correct_bias", "transformed", "unfused_batch_norms"]


def transformed(model: nn.Module, recipe: Recipe, example: Inputs) -> nn.Module:
    """The float model, in evaluation, after the recipe's transforms; the one given is left as it is.

    Raises BackendError where nothing of the model can be traced, or its outputs come out otherwise.
    """
    if not recipe.transforms or not recipe.quantizes:
        return model
    changed = copy.deepcopy(model).eval()
    for transform in recipe.transforms:
        TRANSFORMS[transform.kind](changed, recipe.non_traceable)
    if not computes_the_same(model, changed, example):
        kinds = ", ".join(transform.kind for transform in recipe.transforms)
        raise BackendError(
            f"after {kinds} the float model gives other outputs: are layers called or read from outside of "
            "the module that they stand in?"
        )
    return changed
