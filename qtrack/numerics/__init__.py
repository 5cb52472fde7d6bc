"""The numeric suite: how far each layer of a quantized network is off, and whose fault it is.

Both networks run on the same batch in lockstep; each layer's statistics are added up and its tensors dropped,
so that memory does not grow with the number of samples. The reference is the float model *fused as the
quantized one is*: after fusion ``conv1`` means "after BatchNorm and ReLU", and comparing it with the unfused
layer of that name gives nonsense.
"""

from __future__ import annotations

from qtrack.numerics.compare import Comparison, Options, compare, compare_many
from qtrack.numerics.histograms import histograms
from qtrack.numerics.sites import Pair, Site
from qtrack.numerics.sums import BAD_SAMPLE_DB, ErrorSums, Reference, sqnr_db

__all__ = [
    "BAD_SAMPLE_DB",
    "Comparison",
    "ErrorSums",
    "Options",
    "Pair",
    "Reference",
    "Site",
    "compare",
    "compare_many",
    "histograms",
    "sqnr_db",
]
