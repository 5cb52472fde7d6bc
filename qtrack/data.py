"""Batches: checked, counted, selected and identified by content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from qtrack.errors import DataError
from qtrack.monitor import SILENT, Monitor
from qtrack.recipe import Calibration
from qtrack.task import Batch, Inputs, Split, Task

FIXED_SPLITS: tuple[Split, ...] = ("calibration", "validation", "test")


@dataclass(frozen=True)
class SplitInfo:
    """What a split holds: samples in order, by content."""

    name: str
    samples: int
    batches: int
    batch_size: int
    """Of the first batch."""
    digest: str
    """SHA-256 over the samples' digests in their order."""
    sample_digests: tuple[str, ...] = field(repr=False)
    """Of each sample's inputs."""
    per_class: Mapping[int, int] = field(default_factory=dict)
    """Samples by label; empty where the task has no labels."""
    labels_digest: str = ""
    """SHA-256 over the labels in their order; empty where the task has none."""


def batches_of(task: Task, split: Split) -> Iterator[Batch]:
    """The batches of a split, each checked for NaN and infinity; raises DataError naming the sample."""
    position = 0
    for index, batch in enumerate(getattr(task, split)()):
        _check_finite(batch, f"{split}: batch {index}", position)
        position += size_of(batch)
        yield batch


def size_of(batch: Batch) -> int:
    """Samples in a batch: the first dimension of its first tensor."""
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise DataError(f"a batch holds no tensor with a sample dimension: {type(batch).__name__}")


def _check_finite(batch: Batch, where: str, position: int) -> None:
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            bad = int((~torch.isfinite(leaf)).reshape(len(leaf), -1).any(1).nonzero()[0]) if leaf.dim() else 0
            raise DataError(
                f"{where}: sample {position + bad} holds NaN or infinity; clean the data or drop it"
            )


def inspect_splits(task: Task, monitor: Monitor = SILENT) -> dict[str, SplitInfo]:
    """Read every fixed split once; raises DataError where one is empty or broken."""
    splits = [split for split in FIXED_SPLITS if task.offers(split)]
    found: dict[str, SplitInfo] = {}
    with monitor.phase("reading the data", len(splits)) as advance:
        for split in splits:
            found[split] = inspect_split(task, split)
            advance(1)
    return found


def inspect_split(task: Task, split: Split) -> SplitInfo:
    """Read a split once; raises DataError where it is empty or broken."""
    return split_info(task, split, batches_of(task, split))


def split_info(task: Task, split: Split, batches: Iterable[Batch]) -> SplitInfo:
    """What these batches of a split hold; raises DataError where there are none."""
    digests: list[str] = []
    classes: Counter[int] = Counter()
    labelled = hashlib.sha256()
    sizes = []
    for batch in batches:
        sizes.append(size_of(batch))
        digests += _sample_digests(task.inputs(batch), sizes[-1])
        labels = task.labels(batch)
        if labels is not None:
            classes.update(found := labels.reshape(-1).tolist())
            labelled.update("".join(f"{label}," for label in found).encode())
    if not digests:
        raise DataError(
            f"{split}: {type(task).__name__}.{split}() yields no batch; at least one sample is needed"
        )
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return SplitInfo(
        split,
        samples=len(digests),
        batches=len(sizes),
        batch_size=sizes[0],
        digest=digest,
        sample_digests=tuple(digests),
        per_class=dict(sorted(classes.items())),
        labels_digest=labelled.hexdigest() if classes else "",
    )


def _sample_digests(inputs: Inputs, size: int) -> list[str]:
    hashes = [hashlib.sha256() for _ in range(size)]
    for leaf in tree_flatten(inputs)[0]:
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size:
            rows = leaf.detach().cpu().contiguous().reshape(size, -1).view(torch.uint8).numpy()
            for hasher, row in zip(hashes, rows, strict=True):
                hasher.update(row.tobytes())
    return [hasher.hexdigest() for hasher in hashes]


def overlaps(splits: Mapping[str, SplitInfo]) -> list[str]:
    """A line for each pair of splits that share samples by content."""
    names = list(splits)
    found = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = set(splits[first].sample_digests) & set(splits[second].sample_digests)
            if shared:
                found.append(f"{first} and {second} share {len(shared)} samples: figures on {second} flatter")
    return found


def calibration_batches(
    task: Task, choice: Calibration, seed: int, training_seed: int | None = None
) -> Iterator[Batch]:
    """The samples that a recipe chooses, in the order and the batches of their split.

    ``training_seed`` is what training data are seeded with; None: as the choice is.
    """
    read = _reader(task, choice, seed if training_seed is None else training_seed)
    if choice.samples is None:
        return read()
    keep = _chosen(task, read, choice, choice.seed if choice.seed is not None else seed)
    return selected(read(), keep, choice.samples)


def _reader(task: Task, choice: Calibration, seed: int) -> Callable[[], Iterator[Batch]]:
    """A pass over the split, the same at each call."""
    if choice.source == "calibration":
        return lambda: batches_of(task, "calibration")
    return lambda: _seeded(batches_of(task, "training"), seed, f"{type(task).__name__}.training()")


def _seeded(batches: Iterator[Batch], seed: int, name: str) -> Iterator[Batch]:
    """Batches with a generator to themselves, whatever else draws from torch's meanwhile."""
    state = None
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed) if state is None else torch.set_rng_state(state)
            batch = next(batches, None)
            if batch is None and state is None:
                raise DataError(f"training: {name} yields no batch; calibration needs at least one")
            state = torch.get_rng_state()
        if batch is None:
            return
        yield batch


def _chosen(
    task: Task, read: Callable[[], Iterator[Batch]], choice: Calibration, seed: int
) -> Container[int]:
    """Positions of the samples to keep; all of them where there are fewer than asked for."""
    assert choice.samples is not None
    if choice.choice == "first":
        return range(choice.samples)
    labels, inputs = _known(task, read())
    order = np.random.default_rng(seed).permutation(len(labels))
    if choice.choice == "class_balanced":
        order = _by_turns(order, labels)
    if choice.choice == "outlier_inclusive":
        order = _extremes_first(order, inputs, choice.samples // 2)
    if choice.choice == "typical":
        order = _extremes_first(order, inputs, len(order))[::-1]
    return set(order[: choice.samples].tolist())


def _known(task: Task, batches: Iterable[Batch]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A label for every sample, 0 for all where the task has none; and what its inputs are like."""
    labels, inputs = [], []
    for batch in batches:
        size, found = size_of(batch), task.labels(batch)
        labels.append(np.zeros(size, int) if found is None else found.cpu().numpy())
        inputs.append(_likeness(task.inputs(batch), size))
    return np.concatenate(labels), np.concatenate(inputs)


def _likeness(inputs: Inputs, size: int) -> np.ndarray[Any, Any]:
    """Largest magnitude and standard deviation of each sample's floating inputs; zero where it has none."""
    leaves = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor) and leaf.dim()]
    rows = [leaf.reshape(size, -1) for leaf in leaves if leaf.is_floating_point() and len(leaf) == size]
    if not rows:
        return np.zeros((size, 2))
    values = torch.cat([row.double().cpu() for row in rows], 1)
    return torch.stack([values.abs().amax(1), values.std(1, correction=0)], 1).numpy()


def _extremes_first(
    order: np.ndarray[Any, Any], inputs: np.ndarray[Any, Any], count: int
) -> np.ndarray[Any, Any]:
    """The same samples, those first that are farthest from the median in either respect."""
    apart = np.abs(inputs - np.median(inputs, 0))
    usual = np.where((median := np.median(apart, 0)) > 0, 1.4826 * median, 1.2533 * apart.mean(0))
    scores = np.divide(apart, usual, out=np.zeros_like(apart), where=usual > 0).max(1)
    extreme = order[np.argsort(-scores[order], kind="stable")][:count]
    return np.concatenate([extreme, order[~np.isin(order, extreme)]])


def _by_turns(order: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same samples, the first of each class before the second of any."""
    turn: Counter[int] = Counter()
    rank = []
    for sample in order:
        rank.append(turn[labels[sample]])
        turn[labels[sample]] += 1
    return order[np.argsort(rank, kind="stable")]


def selected(batches: Iterable[Batch], keep: Container[int], count: int) -> Iterator[Batch]:
    """The samples at these positions, in the batches that they come in; read until there are so many."""
    position, taken = 0, 0
    for batch in batches:
        size = size_of(batch)
        rows = [row for row in range(size) if position + row in keep]
        position += size
        taken += len(rows)
        if rows:
            yield _rows(batch, rows, size)
        if taken == count:
            return


def _rows(batch: Batch, rows: list[int], size: int) -> Batch:
    if len(rows) == size:
        return batch
    index = torch.tensor(rows)

    def pick(leaf: Any) -> Any:
        return (
            leaf[index.to(leaf.device)]
            if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size
            else leaf
        )

    return tree_map(pick, batch)
