"""How single values are written: units, digits, bars, shortened names. None is always a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NONE = "-"
REPLACED = "\N{REPLACEMENT CHARACTER}"
FULL_BAR_DB = 60.0
BAR_CELLS = 8
LONGEST_INGREDIENT = 24
SHORT_DIGEST = 12
EIGHTHS = " ▏▎▍▌▋▊▉"
SIZES = (("MB", 1_000_000), ("kB", 1_000), ("B", 1))


@dataclass(frozen=True)
class Scale:
    """How the metric is written: shares as percent, anything else as it is."""

    percent: bool
    digits: int

    @classmethod
    def of(cls, values: Iterable[float | None], samples: int | None) -> Scale:
        """Percent where all values lie in 0..1, with no more digits than one sample moves."""
        known = [value for value in values if value is not None]
        if all(0.0 <= value <= 1.0 for value in known):
            return cls(True, 1 if samples and samples <= 1000 else 2)
        return cls(False, max(0, 3 - math.floor(math.log10(max(map(abs, known))))))

    @property
    def unit(self) -> str:
        return "%" if self.percent else ""

    @property
    def difference_unit(self) -> str:
        """Of differences: a drop from 98% to 96% is one of 2 points."""
        return "points" if self.percent else ""

    def text(self, value: float | None) -> str:
        return number(value if value is None else value * (100 if self.percent else 1), self.digits)

    def with_unit(self, difference: float | None) -> str:
        return f"{self.text(difference)} {self.difference_unit}".strip()


def visible(text: str, keep: str = "") -> str:
    """The text without what a terminal acts on, or a reader does not see; each such letter shows as �."""
    return "".join(letter if letter.isprintable() or letter in keep else REPLACED for letter in text)


def number(value: float | None, digits: int = 0) -> str:
    """Fixed digits, thousands apart; never a negative zero."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def significant(value: float | None, digits: int = 3) -> str:
    """About this many digits that matter: 0.423, 12.3, 1,234."""
    if value is None or not value:
        return number(value)
    return number(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def size_unit(sizes: Iterable[int | None]) -> tuple[str, int]:
    """The unit in which the smallest of these still shows three digits, and its bytes."""
    smallest = min((size for size in sizes if size), default=0)
    return next(((name, scale) for name, scale in SIZES if smallest >= 10 * scale), SIZES[-1])


def size(value: int | None, scale: int) -> str:
    return number(None if value is None else value / scale, 0 if scale == 1 else 1)


def bar(value_db: float | None) -> str:
    """A bar over 0 to 60 dB in eighths of a character; as wide as BAR_CELLS."""
    return " " * BAR_CELLS if value_db is None else share_bar(value_db / FULL_BAR_DB)


def share_bar(share: float) -> str:
    """A bar over 0 to 1; what lies outside is at its end."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(BAR_CELLS)


def shortened(name: str, width: int) -> str:
    """A dotted name in this width: leading parts become initials, then the front is cut."""
    parts = name.split(".")
    for i in range(len(parts) - 1):
        if len(".".join(parts)) <= width:
            break
        parts[i] = parts[i] if parts[i].isdigit() else parts[i][:1]
    short = ".".join(parts)
    return short if len(short) <= width else "…" + short[-(width - 1) :]


def ingredient(text: str) -> str:
    """Digests as people write them; other values as they are, cut where they are long."""
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:SHORT_DIGEST]
    return text if len(text) <= LONGEST_INGREDIENT else f"{text[: LONGEST_INGREDIENT - 1]}…"
