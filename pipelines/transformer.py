"""A small transformer for the same digits: an image as sixteen patches of 2x2 pixels.

**Network.** Two encoder blocks with normalization first, as in ViT (Dosovitskiy et al. 2020), written out in
plain layers so that every one of them has a name; positions come from an `nn.Embedding`, and the mean over
the patches decides.

**Data and weights.** Splits, jitter and training are those of `digits.py`, at a lower rate;
`transformer.safetensors` beside this file is written by

    python pipelines/transformer.py

Nothing is planted in it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from digits import Digits, main
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).with_suffix(".safetensors")
PATCHES, WIDTH, HEADS, DEPTH = 16, 48, 4, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).flatten(2))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.gelu = nn.GELU()
        self.contract = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.contract(self.gelu(self.expand(self.mlp_norm(x))))


class PatchTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unfold = nn.Unfold(2, stride=2)
        self.embed = nn.Linear(4, WIDTH)
        self.position = nn.Embedding(PATCHES, WIDTH)
        self.register_buffer("order", torch.arange(PATCHES), persistent=False)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.unfold(images).transpose(1, 2)
        x = self.blocks(self.embed(patches) + self.position(self.order))
        return self.head(self.norm(x).mean(1))


class Transformer(Digits):
    name = "transformer"

    def model(self) -> nn.Module:
        net = PatchTransformer()
        net.load_state_dict(load_file(WEIGHTS))
        return net


if __name__ == "__main__":
    main(PatchTransformer, Transformer(), WEIGHTS, lr=2e-3)
