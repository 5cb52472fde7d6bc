"""What qtrack says while it works, kept for log.txt."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class Lines(logging.Handler):
    """Keeps all lines of a campaign; a stage's log is what came since it began."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT, "%Y-%m-%d %H:%M:%S"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
        # Python prints warnings that nobody handles; being a handler, this one would silence them.
        if record.levelno >= logging.WARNING and not _others_listen(self) and logging.lastResort:
            logging.lastResort.handle(record)

    def note(self, text: str) -> None:
        """A line for log.txt alone, which nobody is shown."""
        record = logging.LogRecord("qtrack", logging.INFO, "", 0, text, None, None)
        self.lines.append(self.format(record))

    def since(self, start: int) -> str:
        """The text from this many lines on."""
        return "".join(f"{line}\n" for line in self.lines[start:])


def _others_listen(one: logging.Handler) -> bool:
    handlers = (*logging.getLogger("qtrack").handlers, *logging.getLogger().handlers)
    return any(handler is not one for handler in handlers)


@contextmanager
def captured() -> Iterator[Lines]:
    """Listen to the logger ``qtrack``, from INFO on unless the user chose another level."""
    logger, lines = logging.getLogger("qtrack"), Lines()
    before = logger.level
    if before == logging.NOTSET and logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)
