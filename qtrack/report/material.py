"""What a report is made of: read from the ledger, or at hand when a campaign ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from qtrack.errors import QtrackError
from qtrack.report.sources import Row
from qtrack.report.titles import titles_of

if TYPE_CHECKING:
    from qtrack.finding import Diagnosis
    from qtrack.ledger import Ledger, Strategy
    from qtrack.ledger.outcomes import Samples
    from qtrack.recipe import Recipe
    from qtrack.records import StageResult

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Material:
    """Strategies, and what each of them left; keys are positions among the strategies."""

    strategies: Sequence[Strategy]
    layers: Mapping[int, Sequence[Row]]
    samples: Mapping[int, Samples]
    recipes: Mapping[int, Recipe]
    environment: Mapping[str, Any]
    diagnoses: Mapping[int, Diagnosis] = field(default_factory=dict)
    """Of those that were diagnosed."""
    remarks: tuple[str, ...] = ()
    """What could not be read."""


def recorded_material(ledger: Ledger, strategies: Sequence[Strategy]) -> Material:
    """As the store has it; what is damaged there is left out, with a remark."""
    remarks: dict[str, None] = {}
    finished = [i for i, s in enumerate(strategies) if s.status == "FINISHED"]
    titles = titles_of(strategies)

    def each(read: Callable[[str], T], positions: Iterable[int]) -> dict[int, T]:
        found = {}
        for i in positions:
            try:
                found[i] = read(strategies[i].run_id)
            except QtrackError as error:
                remarks[f"{titles[i]}: {error}"] = None
        return found

    diagnosed = [i for i in finished if strategies[i].verdict]
    diagnoses = each(ledger.diagnosis, diagnosed)
    return Material(
        strategies,
        layers=each(ledger.layers, finished),
        samples=each(ledger.samples, finished),
        recipes=each(ledger.recipe, finished),
        environment=next(iter(each(ledger.environment, finished[-1:]).values()), {}),
        diagnoses={i: found for i, found in diagnoses.items() if found is not None},
        remarks=tuple(remarks),
    )


def finished_material(
    strategies: Sequence[Strategy], results: Sequence[StageResult], environment: Mapping[str, Any]
) -> Material:
    """Of a campaign that has just ended; its stages are in the same order in both."""
    from qtrack.ledger.outcomes import Samples

    outcomes = [result.outcome for result in results]
    return Material(
        strategies,
        layers={i: [asdict(row) for row in outcome.layers] for i, outcome in enumerate(outcomes)},
        samples={
            i: Samples(result.baseline.validation, result.outcome.validation)
            for i, result in enumerate(results)
        },
        recipes={i: outcome.recipe for i, outcome in enumerate(outcomes)},
        environment=environment,
        diagnoses={i: result.diagnosis for i, result in enumerate(results) if result.diagnosis},
    )
