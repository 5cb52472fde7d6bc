"""Dynamic quantization."""

from __future__ import annotations

from qtrack.backends.capabilities import has_engines
from qtrack.recipe import BackendName, MinMax, Recipe
from qtrack.stages.evidence import Evidence


def dynamic(recipe: Recipe, evidence: Evidence, *, backend: BackendName | None = None) -> Recipe:
    """Integer weights, activation ranges found as each batch runs, for linear and recurrent layers.

    torch.ao and pt2e find one range for a whole batch; torchao finds one for each row of a linear layer's
    input, and takes symmetric weights of 8 bits with scales per channel.
    """
    found = recipe.with_mode("dynamic")
    if backend is None:
        return found
    if backend == "torchao":
        kept = {"symmetric": True, "bits": 8, "observer": MinMax()}
        found = found.with_weights(granularity="per_channel", **kept)
    return found.having(backend=backend, engine=found.engine if has_engines(backend) else None)
