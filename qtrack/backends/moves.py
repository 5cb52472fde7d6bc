"""Which functions and modules move values or cut them off, and do no arithmetic on them."""

from __future__ import annotations

MOVES_DATA = {
    *(
        "flatten",
        "unflatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "contiguous",
    ),
    *("getitem", "slice", "select", "chunk", "split", "size", "dim", "getattr"),
    *("detach", "clone", "expand", "repeat", "identity"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "channelshuffle"),
    *("relu", "relu6", "clamp", "hardtanh", "maxpool1d", "maxpool2d", "maxpool3d", "adaptivemaxpool2d"),
}
"""Functions and modules that add no error of their own: they move quantized values or cut them off."""


def moves_data(kind: str) -> bool:
    """Does a function or a class of modules of this name add no error of its own?"""
    return kind.lower().replace("_", "") in MOVES_DATA
