"""A run that waits in the middle of its training, while something happens to the store."""

import json
import time
from pathlib import Path

import yaml
from commands import ended, started
from recorded_tiny import write_task

PAUSED = """\
import time
from pathlib import Path

import tiny_task


class Mine(tiny_task.Mine):
    def loss(self, output, batch):
        if not Path("reached").exists():
            Path("reached").touch()
            while not Path("go").exists():
                time.sleep(0.05)
        return super().loss(output, batch)
"""


def run_with(address, change, **environment):
    """A campaign in the working folder, in whose training something happens to the server."""
    write_task(Path())
    Path("paused_task.py").write_text(PAUSED)
    stages = ["float", {"qat": {"epochs": 1}}]
    pipeline = {"name": "tiny", "task": "paused_task.py:Mine", "recipe": {"engine": "x86"}, "stages": stages}
    Path("paused.yaml").write_text(yaml.safe_dump(pipeline))
    process = started("run", "paused.yaml", "--fresh", "--json", "--tracking-uri", address, **environment)
    while not Path("reached").exists() and process.poll() is None:
        time.sleep(0.05)
    change()
    Path("go").touch()
    done = ended(process)
    assert done.exit_code == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [row["stage"] for row in json.loads(done.stdout)] == ["float", "qat"]
    return done


def waiting():
    return list(Path(".qtrack/spool").iterdir())
