"""Fusion: is there BatchNorm that could be folded into the layer before it, and is not?"""

from __future__ import annotations

from qtrack.diagnosis.examination import Examination
from qtrack.diagnosis.making import best_of, fine, judged, named, not_checked, remedy
from qtrack.errors import BackendError
from qtrack.finding import Figure, Finding
from qtrack.transforms import unfused_batch_norms

CHECK = "fusion"
THRESHOLD = "any pair that is left: PyTorch's guide asks to fuse Conv-BN and Linear-BN"


def check(examination: Examination) -> Finding:
    """PyTorch's guide: fuse Conv-BN and Linear-BN patterns, which torch.ao does where they stand together."""
    if examination.recipe.applies("fold_batch_norm"):
        return fine(CHECK, "BatchNorm is folded before anything else happens")
    try:
        pairs = unfused_batch_norms(examination.model, examination.recipe.non_traceable)
    except BackendError as error:
        return not_checked(CHECK, str(error))
    figure = Figure("pairs that are not fused", len(pairs))
    if not pairs:
        return fine(CHECK, "every BatchNorm behind a layer is fused into it", figure, threshold=THRESHOLD)
    layers = [layer for layer, *_ in pairs]
    text = f"BatchNorm is not fused into {named(layers)}"
    if not examination.suffers:
        return Finding(CHECK, "remark", text, figures=(figure,), threshold=THRESHOLD, layers=tuple(layers))
    return judged(
        examination,
        CHECK,
        text,
        best_of(remedy(examination, "fusion", why="fold it into the layer before it is quantized")),
        cause="unfused BatchNorm",
        figures=(figure,),
        threshold=THRESHOLD,
        layers=layers,
    )
