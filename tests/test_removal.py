"""What asks for torch.ao in backends that are to outlive it: nothing of ours, some modules of torchao's."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qtrack.backends import BACKENDS

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PT2E = [
    f"torchao.quantization.pt2e.{module}"
    for module in (
        *("_numeric_debugger", "convert", "prepare", "qat_utils"),
        *("reference_representation_rewrite", "utils"),
    )
]
"""In torchao 0.18; where this list shrinks, the README's has to."""


def ran(backend, mode):
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, HERE / "removal.py", backend, mode],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize(
    ("backend", "mode", "torchaos"), [("pt2e", "static", PT2E), ("torchao", "weight_only", [])]
)
def test_a_backend_runs_where_qtrack_may_not_ask_for_torch_ao(backend, mode, torchaos):
    if find_spec(BACKENDS[backend].partition(":")[0]) is None:
        pytest.skip(f"there is no backend {backend} here")
    done = ran(backend, mode)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == torchaos


def test_a_backend_that_is_made_of_torch_ao_is_refused_there():
    said = "backend 'fx' cannot be imported: qtrack.backends.fx asks for torch.ao.quantization"
    assert said in ran("fx", "static").stderr
