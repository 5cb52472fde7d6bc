"""The stages that qtrack brings, by the name that a pipeline file uses.

A stage is one file here with one pure function ``(recipe, evidence, *, options) -> recipe``, and one line in
this table. A user's own stage is named in the pipeline file as ``package.module:function``.
"""

from __future__ import annotations

from typing import Any

from qtrack.stages.backend import backend
from qtrack.stages.bias_correction import bias_correction
from qtrack.stages.calibration import calibration
from qtrack.stages.diagnose import diagnose
from qtrack.stages.dynamic import dynamic
from qtrack.stages.equalize import equalize
from qtrack.stages.evidence import Evidence, Judged, Stage, Target, absent, judge, needed, needs
from qtrack.stages.fallback import fallback
from qtrack.stages.float16 import float16
from qtrack.stages.float_ import float_
from qtrack.stages.fusion import fusion
from qtrack.stages.keep_float import keep_float
from qtrack.stages.ladder import ladder
from qtrack.stages.observers import observers
from qtrack.stages.per_channel import per_channel
from qtrack.stages.ptq import ptq
from qtrack.stages.qat import qat
from qtrack.stages.recipe import recipe
from qtrack.stages.reduce_range import reduce_range
from qtrack.stages.search import search
from qtrack.stages.weight_only import weight_only

STAGES: dict[str, Any] = {
    "float": float_,
    "ptq": ptq,
    "per_channel": per_channel,
    "qat": qat,
    "fallback": fallback,
    "ladder": ladder,
    "search": search,
    "dynamic": dynamic,
    "float16": float16,
    "weight_only": weight_only,
    "equalize": equalize,
    "bias_correction": bias_correction,
    "fusion": fusion,
    "calibration": calibration,
    "observers": observers,
    "reduce_range": reduce_range,
    "keep_float": keep_float,
    "backend": backend,
    "recipe": recipe,
    "diagnose": diagnose,
}

__all__ = ["STAGES", "Evidence", "Judged", "Stage", "Target", "absent", "judge", "needed", "needs"]
