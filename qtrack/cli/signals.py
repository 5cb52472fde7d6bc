"""Being told to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDINGS = ("SIGTERM", "SIGHUP")


@contextmanager
def terminating_as_interrupted() -> Iterator[None]:
    """These signals end work as Ctrl-C does, so that what must be closed is closed; nohup keeps its say."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    known = [getattr(signal, name) for name in ENDINGS if hasattr(signal, name)]
    taken = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
