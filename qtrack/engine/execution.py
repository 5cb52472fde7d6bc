"""One execution of a recipe, from the float model to everything that is known about the quantized one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from qtrack.backends import Backend, Prepared, Quantized, layers_with_weights, load_backend
from qtrack.backends.capabilities import check, has_engines
from qtrack.backends.engines import default_engine, using_engine
from qtrack.data import batches_of, calibration_batches, size_of
from qtrack.engine.devices import CPU, chosen, follows, moved, on_device
from qtrack.engine.digests import digest_of
from qtrack.engine.evaluation import Begun, Elsewhere, Enough, Part, call, joined, part
from qtrack.engine.measure import latency, size_bytes
from qtrack.engine.packed import load
from qtrack.engine.training import Checkpoint, train
from qtrack.environment import may_saturate
from qtrack.errors import DataError, RecipeError, TaskError
from qtrack.monitor import SILENT, Monitor
from qtrack.numerics import Comparison, Options, compare, histograms
from qtrack.outcome import Cost, Evaluation, Latency, Outcome, Stopped, Until
from qtrack.recipe import Recipe, Static
from qtrack.task import Batch, Split, Task
from qtrack.transforms import correct_bias, transformed

Counted = TypeVar("Counted")

TIMED = 2
"""Batches that are evaluated before others may be asked to: the first takes longer than those after it."""
WORST = 5
"""Layers whose distributions are kept for looking at."""


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the engine named, as this machine would choose it, where its backend has engines."""
    settles = recipe.engine is None and has_engines(recipe.backend)
    return recipe.having(engine=default_engine()) if settles else recipe


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Run torch with this many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_forward(task: Task) -> None:
    """Run the float model on one calibration batch; raises DataError or TaskError where they do not fit."""
    batch = _first_batch(task)
    model = task.model().eval()  # with gradients at hand: a task may train its model when first asked
    with torch.no_grad():
        output = call(model, task.inputs(batch), "the float model refuses calibration batch 0")
    try:
        scores = task.score(output, batch)
    except TaskError:
        raise
    except Exception as cause:  # the user's own function
        raise TaskError(f"{type(task).__name__}.score() fails: {type(cause).__name__}: {cause}") from cause
    if len(scores) != size_of(batch):
        raise TaskError(
            f"{type(task).__name__}.score() gives {len(scores)} numbers for {size_of(batch)} samples"
        )


def execute(
    task: Task,
    recipe: Recipe,
    baseline: HasModel | None = None,
    monitor: Monitor = SILENT,
    *,
    thorough: bool = True,
    timed: bool = False,
    until: Until | None = None,
    sizes: Mapping[str, int] | None = None,
    checkpoint: Checkpoint | None = None,
    elsewhere: Elsewhere | None = None,
) -> Outcome:
    """Build the quantized model that the recipe says, and measure it.

    ``baseline`` is the float model's outcome, timed in alternation with this one. Without ``thorough`` only
    the validation metric is measured, as searches need it: no test split, no layer comparison, and no latency
    unless it is to be ``timed``. Where ``until`` holds before the validation split ends, Stopped is raised.
    ``sizes`` are the samples in each split where that is known, so that progress can tell the time left.
    Training keeps itself in ``checkpoint`` after each epoch, and goes on from what it finds there. When
    it is known how long a batch takes, evaluation goes on ``elsewhere``, and what is left of it goes on here.

    Raises BackendError where the library refuses the model, RecipeError, TaskError and DataError where what
    was given does not fit.
    """
    recipe = settled(recipe)
    check(recipe)
    with using_engine(recipe.engine):
        return _Execution(task, recipe, monitor, sizes or {}, checkpoint, elsewhere).run(
            baseline, thorough=thorough, timed=timed or thorough, until=until
        )


class HasModel(Protocol):
    """What is known of the float model's outcome."""

    @property
    def model(self) -> nn.Module: ...


@dataclass(frozen=True, eq=False)
class Parts:
    """A quantized model, and what it was made of."""

    backend: Backend
    prepared: Prepared
    """Calibrated, and trained where the recipe says so."""
    quantized: Quantized
    forward_samples: int


def quantize(
    task: Task,
    recipe: Recipe,
    monitor: Monitor = SILENT,
    *,
    sizes: Mapping[str, int] | None = None,
) -> Parts:
    """Build the quantized model that the recipe says, measure nothing, and keep its parts.

    Raises what ``execute`` raises, and RecipeError where the recipe quantizes nothing.
    """
    recipe = settled(recipe)
    check(recipe)
    if not recipe.quantizes:
        raise RecipeError("recipe: it leaves all in float")
    with using_engine(recipe.engine):
        return _Execution(task, recipe, monitor, sizes or {}, None).parts()


def rebuild(task: Task, recipe: Recipe, state: dict[str, Any]) -> nn.Module:
    """The recipe's model with a recorded ``state_dict``, unpacked, in place of calibration and training."""
    recipe = settled(recipe)
    with using_engine(recipe.engine):
        example = task.inputs(_first_batch(task))
        model = task.model().eval()
        if recipe.quantizes:
            backend = load_backend(recipe.backend)
            prepared = backend.prepare(transformed(model, recipe, example), recipe, example)
            with torch.no_grad():
                call(prepared.model.eval(), example, "the prepared model refuses its example")
            model = backend.convert(prepared, example).model
        load(model, state)
        return model


def _first_batch(task: Task) -> Batch:
    batch = next(batches_of(task, "calibration"), None)
    if batch is None:
        raise DataError(
            f"calibration: {type(task).__name__}.calibration() yields no batch; at least one is needed"
        )
    return batch


class _Execution:
    """The clock, the counters and the warnings of one execution."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        monitor: Monitor,
        sizes: Mapping[str, int],
        checkpoint: Checkpoint | None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.task = task
        self.checkpoint = checkpoint
        self.elsewhere = elsewhere
        self.recipe = recipe
        self.monitor = monitor
        self.sizes = {**sizes, "calibration": _calibrated(recipe, sizes.get("calibration"))}
        self.phases: dict[str, float] = {}
        self.forwards = 0
        self.warnings: list[str] = []
        self.first = _first_batch(task)
        self.example = task.inputs(self.first)

    def run(self, baseline: HasModel | None, *, thorough: bool, timed: bool, until: Until | None) -> Outcome:
        torch.manual_seed(self.recipe.seed)
        floating = self.task.model().eval()
        quantized = self._quantize(floating).quantized if self.recipe.quantizes else None
        model = quantized.model if quantized else floating
        validation = self._validate(model, until)
        with self._phase("evaluate"):
            test = self._evaluate(model, "test") if thorough and self.task.offers("test") else None
        compared = self._compare(quantized) if thorough and quantized else None
        measured = self._time(model, baseline) if timed else None
        state = model.state_dict()
        if validation.nonfinite:
            self.warnings.append(f"output is NaN or infinite on {validation.nonfinite} validation samples")
        return Outcome(
            recipe=self.recipe,
            build=lambda: model,
            example=self.example,
            metric=self.task.metric,
            validation=validation,
            test=test,
            cost=self._cost(1),
            size_bytes=size_bytes(state),
            latency=measured,
            layers=compared.rows if compared else (),
            sqnr_db=compared.output.sqnr_db if compared else None,
            histograms=self._histograms(quantized, compared) if quantized and compared else {},
            qparams=quantized.qparams if quantized else {},
            float_layers=quantized.float_layers if quantized else layers_with_weights(model),
            digests={
                "parameters": digest_of(state),
                "behaviour": validation.output_digest,
                "float_weights": digest_of(self.task.model().state_dict()),
            },
            warnings=tuple(self.warnings),
        )

    def _cost(self, evaluations: int) -> Cost:
        return Cost(sum(self.phases.values()), dict(self.phases), self.forwards, evaluations)

    def parts(self) -> Parts:
        torch.manual_seed(self.recipe.seed)
        return self._quantize(self.task.model().eval())

    def _quantize(self, model: nn.Module) -> Parts:
        backend = load_backend(self.recipe.backend)
        with self._phase("prepare"):
            model = transformed(model, self.recipe, self.example)
        self.warnings += _reduce_range_warning(self.recipe)
        corrects = self.recipe.applies("correct_bias")
        parts = (self._corrected if corrects else self._converted)(backend, model)
        self.warnings += parts.quantized.warnings
        return parts

    def _corrected(self, backend: Backend, model: nn.Module) -> Parts:
        """Quantized once more with the biases corrected; the reference is the network as it was before."""
        before = self._converted(backend, copy.deepcopy(model)).quantized.pair
        with self._phase("correct"):
            inputs = map(self.task.inputs, self._counted("correct bias", self._calibration(), "calibration"))
            correct_bias(model, before.sites, inputs, self.recipe.non_traceable)
        parts = self._converted(backend, model)
        pair = replace(parts.quantized.pair, reference=before.reference)
        return replace(parts, quantized=replace(parts.quantized, pair=pair))

    def _converted(self, backend: Backend, model: nn.Module) -> Parts:
        with self._phase("prepare"):
            prepared = backend.prepare(model, self.recipe, self.example)
        device = self._device(prepared.model)
        with on_device(prepared.model, device):
            with self._phase("calibrate"):
                self._calibrate(backend, prepared, device)
            if self.recipe.training:
                with self._phase("train"):
                    self.forwards += train(
                        self.task, backend, prepared, self.recipe, self.monitor, self.checkpoint, device
                    )
        with self._phase("convert"):
            return Parts(backend, prepared, backend.convert(prepared, self.example), self.forwards)

    def _device(self, model: nn.Module) -> torch.device:
        """Where the model computes in float; said where that is not the device asked for."""
        if chosen() == CPU or follows(model):
            return chosen()
        said = f"floats were computed on the CPU, not on {chosen()}: the model's graph names a device"
        self.warnings += [said] if said not in self.warnings else []
        return CPU

    def _calibrate(self, backend: Backend, prepared: Prepared, device: torch.device) -> None:
        """Show the observers the chosen samples, with quantization off."""
        backend.fake_quantize(prepared, False)
        prepared.model.eval()
        with torch.no_grad():
            for batch in self._counted("calibrate", self._calibration(), "calibration"):
                inputs = moved(self.task.inputs(batch), device)
                call(prepared.model, inputs, "the prepared model refuses a calibration batch")
        backend.fake_quantize(prepared, True)

    def _calibration(self) -> Iterable[Batch]:
        return calibration_batches(
            self.task, self.recipe.calibration, self.recipe.seed, self.recipe.training_seed
        )

    def _validate(self, model: nn.Module, until: Until | None) -> Evaluation:
        before = self.forwards
        try:
            with self._phase("evaluate"):
                return self._evaluate(model, "validation", until)
        except Enough as enough:
            self.forwards = before + len(enough.scores)
            raise Stopped(enough.scores, self._cost(0)) from None

    def _evaluate(self, model: nn.Module, split: Split, until: Until | None = None) -> Evaluation:
        device = CPU if self.recipe.quantizes else self._device(model)
        with (  # else the traceback of an early end holds what they have opened
            closing(self._parts(model, split, device)) as parts,
            closing(self._counted(split, parts, split, lambda one: len(one.scores))) as found,
        ):
            return joined(self.task, model, split, found, until, device)

    def _parts(self, model: nn.Module, split: Split, device: torch.device) -> Generator[Part, None, None]:
        """The first made here, to see what they take; then those that are had elsewhere; then the rest."""
        batches = enumerate(batches_of(self.task, split))
        batch_s, done, samples, alike = 0.0, 0, 0, device == CPU
        for place, batch in islice(batches, TIMED):
            chance, began = torch.get_rng_state(), time.perf_counter()
            found = part(self.task, model, split, place, batch, device)
            batch_s, done, samples = time.perf_counter() - began, place + 1, samples + len(found.scores)
            alike = alike and torch.equal(chance, torch.get_rng_state())  # else the order of batches counts
            yield found
        others = 0
        if self.elsewhere and alike:
            for found in self.elsewhere(Begun(self.recipe, model, split, done, batch_s, self._model_s())):
                others, samples = others + 1, samples + len(found.scores)
                yield found
        if samples != self.sizes.get(split):
            for place, batch in islice(batches, others, None):
                yield part(self.task, model, split, place, batch, device)

    def _model_s(self) -> float:
        return self.phases.get("prepare", 0.0) + self.phases.get("convert", 0.0)

    def _compare(self, quantized: Quantized) -> Comparison:
        with self._phase("compare"):
            batches = self._counted("compare layers", self._calibration(), "calibration")
            options = Options(activation=getattr(self.recipe.default, "activation", None))
            compared = compare(quantized.pair, (self.task.inputs(batch) for batch in batches), options)
        if compared.nonfinite:
            self.warnings.append(f"NaN or infinity in the output of {', '.join(compared.nonfinite)}")
        return compared

    def _histograms(self, quantized: Quantized, compared: Comparison) -> Any:
        ranked = sorted(
            (r for r in compared.rows if r.own_sqnr_db is not None), key=lambda r: r.own_sqnr_db or 0.0
        )
        return histograms(quantized.pair, self.example, [row.layer for row in ranked[:WORST]])

    def _time(self, model: nn.Module, baseline: HasModel | None) -> Latency:
        with self._phase("time"):
            return latency(model, baseline.model if baseline else model, self.example, size_of(self.first))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began

    def _counted(
        self, name: str, batches: Iterable[Counted], split: str, size: Callable[[Counted], int] = size_of
    ) -> Generator[Counted, None, None]:
        """The same batches, each counted once it is done with."""
        with self.monitor.phase(name, self.sizes.get(split)) as advance:
            for batch in batches:
                yield batch
                advance(size(batch))
                self.forwards += size(batch)


def _calibrated(recipe: Recipe, size: int | None) -> int | None:
    """How many samples calibration takes, where that is known."""
    asked = recipe.calibration.samples
    if recipe.calibration.source == "training":
        return asked
    return asked if size is None else min(asked or size, size)


def _reduce_range_warning(recipe: Recipe) -> list[str]:
    """PyTorch's guide: on fbgemm, set reduce_range to fit the processor."""
    full = any(isinstance(s, Static) and not s.activation.reduce_range for s in recipe.schemes())
    if full and may_saturate(recipe.engine):
        return [f"{recipe.engine} can saturate on this processor: set activation.reduce_range: true"]
    return []
