"""Which part of a layer's own error is the same for all samples: a shift of each channel's mean."""

from __future__ import annotations

import torch
from torch import Tensor

from qtrack.numerics.compare import as_fed, plain, tensors_in
from qtrack.numerics.lockstep import Lockstep, Meeting
from qtrack.numerics.sites import Pair
from qtrack.numerics.steps import Inputs


def shifts(pair: Pair, inputs: Inputs) -> dict[str, float]:
    """Share of the own error's energy that is in the channels' means, by quantized layer with weights."""
    sites = tuple(site for site in pair.sites if site.quantized and site.weight is not None)
    found = {}
    with torch.inference_mode():
        for meeting in Lockstep([Pair(pair.reference, pair.actual, sites)]).run(inputs):
            if meeting.site.layer:
                found[meeting.site.layer] = _share(
                    _error(meeting), channels_last="Linear" in meeting.site.type
                )
    return found


def _error(meeting: Meeting) -> Tensor:
    _, _, start, end, actual = meeting
    given = actual.rerun(as_fed(start.inputs, actual.inputs))
    return plain(tensors_in(given)[0]) - tensors_in(end.output)[0].float()


def _share(error: Tensor, *, channels_last: bool) -> float:
    by_channel = error.movedim(-1 if channels_last else min(1, error.dim() - 1), 0).flatten(1)
    energy = float(by_channel.square().mean(1).sum())
    return float(by_channel.mean(1).square().sum()) / energy if energy else 0.0
