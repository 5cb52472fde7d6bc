"""What others rely on: the public names, the doors, and a README that is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import qtrack
from qtrack.campaign import run_plan
from qtrack.pipeline import read_plan

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "qtrack").rglob("*.py"))


def test_the_public_names_are_these():
    assert sorted(qtrack.__all__) == [
        "Ledger",
        "Outcome",
        "Pipeline",
        "QtrackError",
        "Recipe",
        "Task",
        "compare_models",
        "diagnose",
        "execute",
        "load",
        "run",
    ]
    assert all(getattr(qtrack, name) is not None for name in qtrack.__all__)
    assert set(qtrack.__all__) <= set(dir(qtrack))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qtrack.nothing


def test_importing_qtrack_costs_nothing():
    code = "import qtrack, sys; print({'torch', 'mlflow', 'pandas', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("library", "door"),
    [
        ("torch.ao", "backends"),
        ("torchao", "backends"),
        ("mlflow", "ledger"),
        ("click", "cli"),
        ("rich", "cli"),
        ("optuna", "search"),
    ],
)
def test_each_library_has_one_door(library, door):
    imports = re.compile(rf"^\s*(?:from|import) {re.escape(library)}\b", re.MULTILINE)
    users = {
        path.relative_to(ROOT / "qtrack").parts[0] for path in SOURCES if imports.search(path.read_text())
    }
    assert users <= {door}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readmes_task_runs_and_has_under_forty_lines():
    task, stage = blocks("python")
    assert len([line for line in task.splitlines() if line.strip()]) < 40
    Path("mine.py").write_text(task)
    Path("stages.py").write_text(stage)
    Path("mine.yaml").write_text(blocks("yaml")[0].replace("per_channel,", "'stages.py:narrow',"))

    from memory import Memory

    memory = Memory()
    run_plan(read_plan(Path("mine.yaml")), memory)
    assert memory.stages["float"].outcome.outcome.value > 0.85
    assert memory.stages["narrow"].recipes[0][0].default.weight.bits == 6


def test_the_readmes_recipe_is_one():
    recipe = qtrack.Recipe.model_validate(yaml.safe_load(blocks("yaml")[1])["recipe"])
    assert len(recipe.overrides) == 4


def test_the_readme_names_every_command_and_stage():
    from qtrack.cli import COMMANDS
    from qtrack.stages import STAGES

    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"`qtrack {name}" not in text] == []
    assert [name for name in STAGES if f"`{name}`" not in text] == []
