"""Many pipelines, each with its task, seed and engine: one job each, done anywhere and recorded once."""

from qtrack.sweep.drive import Swept, run_sweep
from qtrack.sweep.plan import Sweep, read_sweep

__all__ = ["Sweep", "Swept", "read_sweep", "run_sweep"]
