"""Where torchao comes in: imported when it is asked for, and without what it says on the way.

Its import, and the first reading of a configuration, report libraries for other devices that do not load here
and deprecations of torch's that only torchao can mend. None of it is of use to who runs a recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from qtrack.backends.messages import unheard

STDERR = 2


@contextmanager
def hushed() -> Iterator[None]:
    """The same, and whatever a library writes to stderr past Python."""
    with unheard(), _nowhere():
        yield


def torchao(module: str = "torchao.quantization") -> Any:
    """A module of torchao's; raises ImportError where it is not installed."""
    if module in sys.modules:
        return sys.modules[module]
    with hushed():
        return import_module(module)


@contextmanager
def _nowhere() -> Iterator[None]:
    """The file descriptor of stderr on /dev/null, where the process has one."""
    with suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        kept = os.dup(STDERR)
    except OSError:  # closed, as in a daemon
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
