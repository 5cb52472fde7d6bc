"""What the layer comparison costs, beside the two forward passes that it cannot do without, and beside peers.

    python benchmarks/numerics.py --markdown

* Each contender runs in a process of its own, one torch thread, its address space limited, on the same seeded
  data and on a model calibrated on the same two batches (min-max ranges, weights per channel, engine x86).
* The clock starts when models are built, calibrated, converted and warmed up on one batch, and stands still
  while a batch is made. What a tool does to be able to compare (pairing the layers of the two graphs, adding
  loggers) counts, for qtrack as for the others.
* CPU seconds drift by a tenth and more on a shared machine, whatever the contender. So the floor (the two
  forward passes alone) runs before and after every contender, and a ratio is taken to the mean of these two
  neighbours; of several rounds the median counts. The spread of the floors themselves is in their row.
* Memory is the process's peak resident size during the comparison, as the kernel recorded it (VmHWM, set back
  when the clock starts), less the resident size at that moment, freed memory given back first. It includes
  the activations of the forward passes: what they need by themselves is in the floor's row.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from networks import NETWORKS, digits_task, network
from torch import Tensor, nn

from qtrack.backends.engines import quiet
from qtrack.backends.fx import FxBackend
from qtrack.backends.fx_pairing import pair_graphs
from qtrack.numerics import Options, compare
from qtrack.recipe import ActivationSpec, MinMax, Recipe, Static, WeightSpec

ROOT = Path(__file__).resolve().parents[1]
ADDRESS_SPACE = 15 << 30
SAMPLE = 8192
"""Elements of each sample's tensor that ``qtrack sampled`` looks at."""
CALIBRATION_BATCHES = 2
SQNR_DB = dict[str, float | None]


@dataclass(frozen=True)
class Case:
    """Which network is looked at, on how many samples."""

    network: str
    samples: int

    @property
    def batch_size(self) -> int:
        return 64 if self.network == "digits" else 16


@dataclass(frozen=True)
class Cost:
    """What one comparison took; ``failure`` in place of numbers where it did not end."""

    cpu_s: float = float("nan")
    wall_s: float = float("nan")
    extra_mb: float = float("nan")
    sqnr_db: SQNR_DB | None = None
    failure: str | None = None
    ratio: float = float("nan")
    """CPU time over that of the neighbouring floors."""
    above_floor_mb: float = float("nan")


class Batches:
    """The data, each batch made when it is asked for; remembers what that took."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.cpu_s = self.wall_s = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        size = self.case.batch_size
        for start in range(0, self.case.samples, size):
            cpu, wall = time.process_time(), time.perf_counter()
            images = _images(self.case.network, start, min(size, self.case.samples - start))
            self.cpu_s += time.process_time() - cpu
            self.wall_s += time.perf_counter() - wall
            yield (images,)


def _images(name: str, start: int, count: int) -> Tensor:
    if name == "digits":
        images = _digits("validation")
        images = images[torch.arange(start, start + count) % len(images)]
    else:
        images = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(start))
    return images.contiguous(memory_format=torch.channels_last)


def _digits(split: str) -> Tensor:
    return torch.cat([images for images, _ in getattr(digits_task(), split)()])


def _calibration(case: Case) -> list[Tensor]:
    if case.network == "digits":
        return list(_digits("calibration").split(case.batch_size)[:CALIBRATION_BATCHES])
    firsts = range(0, CALIBRATION_BATCHES * case.batch_size, case.batch_size)
    return [_images(case.network, start, case.batch_size) for start in firsts]


# ---- Contenders: each gets its models ready on a case and hands back what the clock is put on. ----

Compare = Callable[[Iterable[tuple[Tensor]]], SQNR_DB]


def floor(case: Case) -> Compare:
    model, _, quantized, _ = _fx_models(case)

    def run(batches: Iterable[tuple[Tensor]]) -> SQNR_DB:
        with torch.inference_mode():
            for (images,) in batches:
                model(images)
                quantized.model(images)
        return {}

    return run


def qtrack(options: Options) -> Callable[[Case], Compare]:
    def ready(case: Case) -> Compare:
        _, prepared, quantized, example = _fx_models(case)

        def run(batches: Iterable[tuple[Tensor]]) -> SQNR_DB:
            pair = pair_graphs(prepared.model, quantized.model, prepared.details.modules, (example,))
            return {row.layer: row.sqnr_db for row in compare(pair, batches, options).rows}

        return run

    return ready


def torch_ao_ns(case: Case) -> Compare:
    from torch.ao.ns import _numeric_suite_fx as ns
    from torch.ao.ns.fx.utils import compute_sqnr

    _, prepared, quantized, _ = _fx_models(case)

    def run(batches: Iterable[tuple[Tensor]]) -> SQNR_DB:
        with torch.no_grad(), quiet():
            models = copy.deepcopy(prepared.model), copy.deepcopy(quantized.model)
            logged = ns.add_loggers("float", models[0], "int8", models[1], ns.OutputLogger)
            for (images,) in batches:
                for model in logged:
                    model(images)
            found = ns.extract_logger_info(*logged, ns.OutputLogger, "int8")
            ns.extend_logger_results_with_comparison(found, "float", "int8", compute_sqnr, "sqnr")
        layers = (layer["node_output"]["int8"][0] for layer in found.values())
        return {layer["fqn"]: float(torch.stack(layer["sqnr"]).mean()) for layer in layers}

    return run


def torchao_debugger(case: Case) -> Compare:
    from torchao.quantization.pt2e import (
        compare_results,
        extract_results_from_loggers,
        prepare_for_propagation_comparison,
    )

    exported, converted = _pt2e_models(case)

    def run(batches: Iterable[tuple[Tensor]]) -> SQNR_DB:
        logged = [prepare_for_propagation_comparison(model) for model in (exported, converted)]
        with torch.no_grad():
            for (images,) in batches:
                for model in logged:
                    model(images)
            found = compare_results(*(extract_results_from_loggers(model) for model in logged))
            return {
                layer.name: float(torch.stack([result.sqnr for result in summary.results]).mean())
                for layer, summary in found.items()
            }

    return run


FLOOR = "floor"
CONTENDERS: dict[str, Callable[[Case], Compare]] = {
    "qtrack exact": qtrack(Options(own_share=False)),
    "qtrack sampled": qtrack(Options(own_share=False, sample=SAMPLE)),
    "qtrack own share": qtrack(Options()),
    "torch.ao.ns": torch_ao_ns,
    "torchao debugger": torchao_debugger,
}


def _fx_models(case: Case) -> tuple[nn.Module, Any, Any, Tensor]:
    """The user's float model, and the same prepared and converted by fx, all of them warm."""
    model, calibration = network(case.network), _calibration(case)
    weight, activation = WeightSpec(granularity="per_channel"), ActivationSpec(observer=MinMax())
    recipe = Recipe(engine="x86", default=Static(weight=weight, activation=activation))
    backend, example = FxBackend(), calibration[0][:1]
    prepared = backend.prepare(network(case.network), recipe, (example,))
    with torch.inference_mode(), quiet():
        for images in calibration:
            prepared.model(images)
    quantized = backend.convert(prepared, (example,))
    with torch.inference_mode():
        model(calibration[0])
        quantized.model(calibration[0])
    return model, prepared, quantized, example


def _pt2e_models(case: Case) -> tuple[nn.Module, nn.Module]:
    """The exported float model and the converted one, both warm."""
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    calibration = _calibration(case)
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    program = torch.export.export(network(case.network), (calibration[0],), dynamic_shapes=(batch,))
    config = x86.get_default_x86_inductor_quantization_config()
    ranges = replace(config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12))
    config = replace(config, input_activation=ranges, output_activation=ranges)
    prepared = prepare_pt2e(program.module(), x86.X86InductorQuantizer().set_global(config))
    with torch.no_grad():
        for images in calibration:
            prepared(images)
        exported, converted = program.module(), convert_pt2e(prepared)
        exported(calibration[0])
        converted(calibration[0])
    return exported, converted


# ---- In the child: one contender, measured. ----


def measure(name: str, case: Case) -> Cost:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    torch.set_num_threads(1)
    torch.backends.quantized.engine = "x86"
    run = (CONTENDERS | {FLOOR: floor})[name](case)
    batches = Batches(case)
    loaded_mb = _forget_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        found = run(batches)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            return Cost(failure="out of memory")
        raise
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu_s - batches.cpu_s, wall_s - batches.wall_s, _status_mb("VmHWM") - loaded_mb, found)


def _forget_peak() -> float:
    """The resident size without what was freed, from which on the kernel records the peak anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


# ---- In the parent: turns and tables. ----


def in_turns(case: Case, names: list[str], rounds: int) -> dict[str, list[Cost]]:
    """All costs by contender, every contender between two floors."""
    floors = [_in_child(FLOOR, case)]
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _, name in itertools.product(range(rounds), names):
        cost = _in_child(name, case)
        floors.append(_in_child(FLOOR, case))
        costs[name].append(_beside(cost, floors[-2:]))
    return {FLOOR: floors, **costs}


def _beside(cost: Cost, floors: list[Cost]) -> Cost:
    cpu_s, extra_mb = (mean(getattr(floor, key) for floor in floors) for key in ("cpu_s", "extra_mb"))
    return replace(cost, ratio=cost.cpu_s / cpu_s, above_floor_mb=cost.extra_mb - extra_mb)


def _in_child(name: str, case: Case) -> Cost:
    words = [sys.executable, __file__, "--child", name, "--networks", case.network]
    words += ["--samples", str(case.samples)]
    done = subprocess.run(words, capture_output=True, text=True, env=_environment(), cwd=ROOT)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [""])[-1]
        cost = Cost(
            failure="out of memory" if "alloc" in reason else f"exit {done.returncode}: {reason[:60]}"
        )
    else:
        cost = Cost(**json.loads(done.stdout.splitlines()[-1]))
    said = cost.failure or f"{cost.cpu_s:.2f} CPU-s, {cost.wall_s:.2f} s, {cost.extra_mb:+.0f} MB"
    print(f"{case.network} N={case.samples} {name}: {said}", file=sys.stderr, flush=True)
    return cost


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


Row = tuple[str, ...]
COST_HEADER = (
    "network",
    "N",
    "contender",
    "CPU s",
    "wall s",
    "ratio to floor",
    "extra MB",
    "above floor, MB",
)
ERROR_HEADER = ("network", "N", "layers", "largest error, dB", "median error, dB")


def cost_rows(case: Case, costs: dict[str, list[Cost]]) -> Iterator[Row]:
    """The median over rounds of each number; the spread of the floors is what the machine does by itself."""
    for name, of_rounds in costs.items():
        head = (case.network, str(case.samples), name)
        failure = next((cost.failure for cost in of_rounds if cost.failure), None)
        if failure:
            yield (*head, failure, "", "", "", "")
            continue
        seconds = [cost.cpu_s for cost in of_rounds]
        middle = median(seconds)
        ratio = f"{median(cost.ratio for cost in of_rounds):.2f}"
        above = f"{median(cost.above_floor_mb for cost in of_rounds):+.0f}"
        if name == FLOOR:
            above = ""
            ratio = f"{min(seconds) / middle:.2f} to {max(seconds) / middle:.2f}"
        wall, extra = (median(getattr(cost, key) for cost in of_rounds) for key in ("wall_s", "extra_mb"))
        yield (*head, f"{middle:.2f}", f"{wall:.2f}", ratio, f"{extra:.0f}", above)


def error_rows(case: Case, costs: dict[str, list[Cost]]) -> Iterator[Row]:
    """How far the sampled SQNR is from the exact one, over the layers that have both."""
    exact, sampled = (
        costs.get(name, [Cost()])[0].sqnr_db or {} for name in ("qtrack exact", "qtrack sampled")
    )
    both = [(exact[layer], sampled[layer]) for layer in exact if layer in sampled]
    errors = [abs(one - other) for one, other in both if one is not None and other is not None]
    if errors:
        yield (
            case.network,
            str(case.samples),
            str(len(errors)),
            f"{max(errors):.2f}",
            f"{median(errors):.2f}",
        )


def machine() -> str:
    """The machine in one line."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{cpu or platform.processor()} ({capability}), {os.cpu_count()} cores, 1 thread used; "
        f"torch {torch.__version__}, torchao {_version('torchao')}, Python {platform.python_version()}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def markdown(header: Row, rows: Iterable[Row]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


def plain(header: Row, rows: Iterable[Row]) -> str:
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the layer comparison costs, beside its peers.")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--samples", nargs="+", type=int, default=[128, 512], metavar="N")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=list(CONTENDERS),
        choices=CONTENDERS,
        metavar="NAME",
        help=", ".join(CONTENDERS),
    )
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    cases = [Case(*pair) for pair in itertools.product(asked.networks, asked.samples)]
    if asked.child:
        print(json.dumps(asdict(measure(asked.child, cases[0]))))
        return
    costs = {case: in_turns(case, asked.contenders, asked.rounds) for case in cases}
    table = markdown if asked.markdown else plain
    print(machine(), end="\n\n")
    print(table(COST_HEADER, [row for case in cases for row in cost_rows(case, costs[case])]))
    errors = [row for case in cases for row in error_rows(case, costs[case])]
    if errors:
        print(f"\nSQNR of layers, sampled ({SAMPLE} elements of each sample) against exact:\n")
        print(table(ERROR_HEADER, errors))


if __name__ == "__main__":
    main()
