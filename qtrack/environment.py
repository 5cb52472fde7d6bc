"""Where something ran: what can make the same recipe give another result elsewhere."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("qtrack", "torch", "torchao", "mlflow", "numpy", "pandas")
INSTRUCTION_SET_CAPS = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "MKL_ENABLE_INSTRUCTIONS",
)
SETTINGS = ("MLFLOW_", "QTRACK_")
"""Beginnings of the variables that set MLflow and qtrack up."""
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_tile", "asimd", "asimddp", "i8mm")


def environment(folder: Path | None = None) -> dict[str, Any]:
    """Versions, processor, threads, the command, and the state of the git checkout that ``folder`` is in.

    As it is: secrets are masked where this is written.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "cpu": {
            "model": cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "features": [feature for feature in FEATURES if feature in _cpu_flags()],
            "count": os.cpu_count(),
        },
        "threads": torch.get_num_threads(),
        "engines": [name for name in torch.backends.quantized.supported_engines if name != "none"],
        "variables": {name: os.environ[name] for name in INSTRUCTION_SET_CAPS if name in os.environ},
        "command": shlex.join(sys.argv),
        "settings": {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)},
        "git": git_state(folder or Path()),
    }


def has_vnni() -> bool:
    """Has the processor 8-bit dot products that accumulate in 32 bits, so that nothing saturates?"""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & _cpu_flags())


def may_saturate(engine: str | None) -> bool:
    """Do an engine's accumulators overflow here where activations have all eight bits?

    PyTorch's guide: on processors without VNNI. fbgemm's kernel for depthwise convolutions adds up in 16 bits
    on any: measured with VNNI, nine products of the largest numbers came to 5 instead of 9.
    """
    return engine == "fbgemm" or (engine == "x86" and not has_vnni())


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout or without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _cpu_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
