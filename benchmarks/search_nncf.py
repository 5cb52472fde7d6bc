"""``nncf.quantize_with_accuracy_control`` on a folder that ``benchmarks/search.py`` wrote; prints JSON.

    python benchmarks/search_nncf.py FOLDER

It runs in an environment that has torch, nncf and openvino, and of qtrack takes the rule of acceptance.
FOLDER holds the float network (``network.pt2``), the splits (``data.safetensors``) and ``options.json``:
``max_drop``, ``per_channel`` and ``confidence``, with which nncf is told the worst metric that the interval
allows in place of the one measured; null: what was measured. Samples go to nncf one by one, so that it can
rank on those that lost most, and through the network in batches. What it delivers is run as OpenVINO's CPU
plugin runs it by default.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from safetensors.numpy import load_file

from qtrack.statistics import paired_drop

BATCH = 64
WITH_WEIGHTS = {"Convolution", "GroupConvolution", "MatMul"}
STORED_AS = {"i8", "u8"}


class Validation:
    """The validation function, and how often and on how many samples it was called."""

    def __init__(self, size: int, confidence: float | None) -> None:
        self.size, self.confidence = size, confidence
        self.calls = self.whole = self.samples = 0
        self.last = 0.0
        self.floating: np.ndarray | None = None

    def __call__(self, model: Any, items: Any) -> tuple[float, list[float]]:
        images, labels = zip(*items, strict=True)
        found = scores(model, np.stack(images), np.array(labels))
        self.calls += 1
        self.samples += len(found)
        is_whole = len(found) == self.size
        return self._on_all(found) if is_whole else float(found.mean()), found.tolist()

    def _on_all(self, found: np.ndarray) -> float:
        """The metric on the whole split; the first to come is the float model."""
        self.whole += 1
        self.last = float(found.mean())
        if self.floating is None:
            self.floating = found
            return self.last
        if self.confidence is None:
            return self.last
        return float(self.floating.mean()) - paired_drop(self.floating, found, self.confidence).high


def scores(model: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """1 where the top class is right, else 0."""
    firsts = range(0, len(images), BATCH)
    outputs = [model(images[first : first + BATCH])[0] for first in firsts]
    return (np.concatenate(outputs).argmax(1) == labels).astype(float)


def weights_in_float(model: ov.Model) -> list[str]:
    """Operations with weights whose weights are neither stored as integers nor rounded to them."""
    found = [op for op in model.get_ops() if op.get_type_name() in WITH_WEIGHTS]
    return [op.get_friendly_name() for op in found if not _is_rounded(op.input_value(1).get_node())]


def _is_rounded(node: Any) -> bool:
    if node.get_type_name() == "FakeQuantize":
        return True
    if node.get_type_name() == "Constant":
        return node.get_element_type().get_type_name() in STORED_AS
    return any(_is_rounded(value.get_node()) for value in node.input_values())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    options = json.loads((folder / "options.json").read_text())
    data = load_file(folder / "data.safetensors")
    network = ov.convert_model(torch.export.load(folder / "network.pt2"))
    calibration = [(image, 0) for image in data["calibration.images"]]
    validation = list(zip(data["validation.images"], data["validation.labels"], strict=True))
    validate = Validation(len(validation), options.get("confidence"))
    weights = QuantizationParameters(per_channel=options["per_channel"])
    began = time.process_time()
    found = nncf.quantize_with_accuracy_control(
        network,
        nncf.Dataset(calibration, lambda item: item[0][None]),
        nncf.Dataset(validation, lambda item: item[0][None]),
        validate,
        max_drop=options["max_drop"],
        advanced_quantization_parameters=AdvancedQuantizationParameters(weights_quantization_params=weights),
    )
    cpu_s = time.process_time() - began
    delivered = ov.compile_model(found, "CPU")
    tests = [(split, data[f"{split}.images"], data[f"{split}.labels"]) for split in ("validation", "test")]
    answer = {
        "cpu_s": cpu_s,
        "calls": validate.calls,
        "whole": validate.whole,
        "samples": validate.samples + len(calibration),
        "claimed": validate.last,
        "float_layers": weights_in_float(found),
        "precision": delivered.get_property("INFERENCE_PRECISION_HINT").get_type_name(),
        "versions": f"nncf {nncf.__version__}, openvino {ov.__version__.partition('-')[0]}",
        **{split: scores(delivered, images, labels).tolist() for split, images, labels in tests},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
