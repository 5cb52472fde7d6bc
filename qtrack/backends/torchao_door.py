"""Where torchao comes in: imported when it is asked for, and without what it says on the way.

Its import, and the first reading of a configuration, report libraries for other devices that do not load here
and deprecations of torch's that only torchao can mend. None of it is of use to who runs a recipe.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from qtrack.backends.messages import hushed


def torchao(module: str = "torchao.quantization") -> Any:
    """A module of torchao's; raises ImportError where it is not installed."""
    if module in sys.modules:
        return sys.modules[module]
    with hushed():
        return import_module(module)
