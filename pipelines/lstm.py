"""A recurrent network for the same digits: an LSTM that reads an image row by row.

**Data and weights.** Splits, jitter and training are those of `digits.py`; `lstm.safetensors` beside this
file is written by

    python pipelines/lstm.py

Nothing is planted in it. torch.ao has no static kernel for recurrent layers, so what this network shows is
what dynamic, weight-only and float16 make of one.
"""

from __future__ import annotations

from pathlib import Path

from digits import Digits, main
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")
WIDTH, STATE = 32, 64


class RowReader(nn.Module):
    """Each row of pixels is widened and read in order; the last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Linear(8, WIDTH)
        self.relu = nn.ReLU()
        self.lstm = nn.LSTM(WIDTH, STATE, batch_first=True)
        self.head = nn.Linear(STATE, 10)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.lstm(self.relu(self.widen(images.squeeze(1))))
        return self.head(states[:, -1])


class Lstm(Digits):
    name = "lstm"

    def model(self) -> nn.Module:
        net = RowReader()
        net.load_state_dict(load_file(WEIGHTS))
        return net


if __name__ == "__main__":
    main(RowReader, Lstm(), WEIGHTS)
