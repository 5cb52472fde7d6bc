"""The numeric suite on models as users have them: two models and some batches, nothing else.

It answers the questions of PyTorch's own numeric suites in one pass and without keeping activations:

===============================================  ===================================================
torch.ao.ns, eager and FX                        here
===============================================  ===================================================
``compare_weights`` / ``extract_weights``        ``weight_sqnr_db``, ``weight_channel_sqnr_db``
``compare_model_outputs`` / ``add_loggers``      ``sqnr_db``, ``cosine``, ``nmse``, ``max_abs_error``
``compare_model_stub`` / ``add_shadow_loggers``  ``own_sqnr_db``
``prepare_n_shadows_model``                      candidates by name: ``compare_models(f, {"a": q})``
user-defined comparison functions                ``measures={"name": function}``
===============================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import nn

from qtrack.backends import pair_models
from qtrack.engine.devices import device_of, moved
from qtrack.engine.evaluation import call
from qtrack.errors import DataError
from qtrack.numerics import Comparison, Options, compare_many
from qtrack.numerics.compare import Measure

if TYPE_CHECKING:
    from pandas import DataFrame


def compare_models(
    float_model: nn.Module,
    quantized: nn.Module | Mapping[str, nn.Module],
    batches: Iterable[Any],
    *,
    own_share: bool = True,
    sample: int | None = None,
    measures: Mapping[str, Measure] | None = None,
) -> DataFrame:
    """The layer table of a quantized model against the float model that it was made of.

    ``quantized`` comes from torch.ao's FX or eager mode, static or dynamic; several by name are compared
    with one run of the float model, and get the columns ``candidate`` and ``best`` (the largest own SQNR for
    that layer). A batch is a tensor, a tuple of positional or a dict of keyword arguments, and goes to
    the float model's device, where the others must be: fake-quantized ones can be on a GPU. ``sample`` looks
    at so many elements of each sample's tensors only.

    One row per layer, fields as in ``qtrack.outcome.LayerRow``; ``attrs`` of the table hold ``samples``, and
    by candidate ``output_sqnr_db`` and ``sample_sqnr_db`` of the network's output, and ``distributions`` of
    the layers' float outputs (counts, and edges eight to the octave). Raises DataError without a batch,
    BackendError where layers cannot be paired.
    """
    device = device_of(float_model)
    inputs = (moved(_as_inputs(batch), device) for batch in batches)
    first = next(inputs, None)
    if first is None:
        raise DataError("compare_models: no batch; at least one is needed")
    candidates = quantized if isinstance(quantized, Mapping) else {"": quantized}
    with _evaluating(float_model, *candidates.values()):
        call(float_model, first, "the float model refuses batch 0")
        pairs = pair_models(float_model, list(candidates.values()), first)
        options = Options(own_share, sample, dict(measures or {}))
        found = compare_many(pairs, chain([first], inputs), options)
    return _table(dict(zip(candidates, found, strict=True)), several=isinstance(quantized, Mapping))


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """In eval mode for the time being, each module afterwards as it was."""
    before = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _distributions(comparison: Comparison) -> dict[str, dict[str, list[float]]]:
    """Plain lists: pandas compares ``attrs`` for equality, which arrays do not stand."""
    histograms = {layer: sketch.histogram() for layer, sketch in comparison.sketches.items()}
    return {
        layer: {"counts": counts.tolist(), "edges": edges.tolist()}
        for layer, (counts, edges) in histograms.items()
    }


def _as_inputs(batch: Any) -> Any:
    if isinstance(batch, tuple | dict):
        return batch
    return tuple(batch) if isinstance(batch, list) else (batch,)


def _table(found: Mapping[str, Comparison], *, several: bool) -> DataFrame:
    import pandas as pd

    rows = [
        {"candidate": name, **row.to_dict()} for name, comparison in found.items() for row in comparison.rows
    ]
    table = pd.DataFrame(rows)
    if several:
        best = table.groupby("layer")["own_sqnr_db"].transform("max")
        table.insert(1, "best", table["own_sqnr_db"] == best)
    else:
        table = table.drop(columns="candidate")
    table.attrs["samples"] = next(iter(found.values())).samples
    table.attrs["output_sqnr_db"] = {name: comparison.output.sqnr_db for name, comparison in found.items()}
    table.attrs["sample_sqnr_db"] = {name: list(c.sample_sqnr_db) for name, c in found.items()}
    table.attrs["distributions"] = _distributions(next(iter(found.values())))
    return table
