"""Whatever the size of a store, reading it takes no more memory."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from large_store import build, measured

pytestmark = pytest.mark.slow
COMMANDS = {
    "compare": ["compare", "--experiment", "net-0", "--json"],
    "history": ["history", "--experiment", "net-0", "--stage", "stage 1", "--last", "200", "--json"],
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Of one experiment with 1,100 runs, and with ten times as many."""
    folders = {runs: tmp_path_factory.mktemp(f"store-{runs}") for runs in (1_100, 11_000)}
    for runs, folder in folders.items():
        assert build(folder / "mlflow.db", runs, experiments=1) == runs
    return folders


@pytest.mark.parametrize("command", COMMANDS)
def test_ten_times_as_many_runs_take_as_much_memory(stores, command):
    few, many = (measured(COMMANDS[command], folder)[1] for folder in stores.values())
    assert many < few + 20  # MB; all runs at once are some 50
