"""The pipeline file: all its faults are found before anything runs."""

from pathlib import Path

import pytest
from tiny import Tiny

from qtrack.errors import PipelineError
from qtrack.pipeline import Pipeline, plan_of, read_plan

HERE = Path(__file__).parent


def plan(text, settings=None):
    path = Path("plan.yaml")
    path.write_text(text)
    return read_plan(path, settings)


def faults(text, settings=None):
    with pytest.raises(PipelineError) as error:
        plan(text, settings)
    return [fault.removeprefix("plan.yaml: ") for fault in error.value.faults]


TASK = f"task: {HERE}/tiny.py:Tiny"
GOOD = f"name: p\n{TASK}\nstages: [float, ptq, qat: {{epochs: 2}}, fallback: {{from: ptq, name: rescue}}]"


def test_a_pipeline_file_is_read():
    found = plan(GOOD)
    assert [stage.name for stage in found.pipeline.stages] == ["float", "ptq", "qat", "rescue"]
    assert found.pipeline.stages[2].options == {"epochs": 2}
    assert found.pipeline.stages[3].start == "ptq"
    assert type(found.task).__name__ == "Tiny"


def test_settings_override_the_file():
    found = plan(GOOD, {"target.max_drop": 0.5, "recipe.seed": 7})
    assert found.pipeline.target.max_drop == 0.5
    assert found.pipeline.recipe.seed == 7
    assert faults(GOOD, {"name.x": 1}) == [
        "--set name.x: 'name' has no fields of its own".removeprefix("plan.yaml: ")
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            "stages: [float, ptqq]",
            "stages[1]: unknown stage 'ptqq'; known stages are float, ptq, per_channel",
        ),
        (
            "stages: [ptq: {obsever: histogram}]",
            "stages[0].ptq: unknown option 'obsever'; known options are observer, samples",
        ),
        ("stages: [qat: {epochs: many}]", "stages[0].qat.epochs: 'many': Input should be a valid integer"),
        ("stages: [qat: 3]", "stages[0]: options of qat must be a mapping"),
        ("stages: [{ptq: {}, qat: {}}]", "stages[0]: one stage per entry, found ptq, qat"),
        ("stages: [7]", "stages[0]: write the stage's name"),
        ("stages: []", "stages: name at least one, such as float"),
        ("stages: [ptq, ptq]", "stages: two stages are called 'ptq'"),
        (
            "stages: [fallback: {from: ptq}, ptq]",
            "stages: fallback starts from 'ptq', not a stage before it (none)",
        ),
        (
            "stages: [nowhere:stage]",
            "stages[0]: stage 'nowhere:stage': cannot import nowhere: ModuleNotFoundError",
        ),
        ("stages: [math:nothing]", "stages[0]: stage 'math:nothing': math has no 'nothing'"),
        ("until: forever", "until: 'forever' is not one of all, target"),
        ("device: tpu", "device: 'tpu' is not one of cpu, cuda, cuda:N"),
        ("device: cuda:x", "device: 'cuda:x' is not one of cpu, cuda, cuda:N"),
        ("device: 1", "device: 1: input should be a valid string"),
        ("threads: 0", "threads: 0: input should be greater than or equal to 1"),
        ("target: {max_drop: -1}", "target.max_drop: -1: input should be greater than or equal to 0"),
        ("target: {metric: f1}", "target.metric: 'f1' has no score per sample"),
        (
            "target: {max_drp: 1}",
            "target.max_drp: unknown field; known fields are metric, max_drop, confidence",
        ),
        ("recipe: {engin: x86}", "recipe.engin: unknown field; known fields are version, backend, engine"),
        (
            "recipe: {overrides: [{layer: blck, scheme: float}]}",
            "recipe.overrides[0]: layer 'blck' matches no layer of Tiny's model",
        ),
        ("nam: x", "nam: unknown field; known fields are name, task, target"),
        ("task: nowhere.py:Task", "nowhere.py: no such file"),
        ("task: tiny", "task 'tiny': write package.module:Class or path/to/file.py:Class"),
        ("task: math:pi", "task 'math:pi': 3.141592653589793 is not a subclass of qtrack.Task"),
        ("task: math:tau2", "task 'math:tau2'"),
    ],
)
def test_each_fault_is_one_line_that_says_where(change, fault):
    key = change.partition(":")[0]
    lines = [line for line in GOOD.splitlines() if not line.startswith(f"{key}:")]
    (found,) = faults("\n".join([*lines, change]))
    assert fault in found


def test_faults_of_file_task_stages_and_recipe_are_reported_together():
    found = faults(
        f"nme: p\ntask: {HERE}/tiny.py:WithoutTraining\n"
        "recipe: {overrides: [{glob: 'x*', scheme: float}]}\n"
        "stages: [float, ptqq, qat: {epoch: 2}]\n"
    )
    assert len(found) == 6
    assert any("name: is missing" in fault for fault in found)
    assert any("nme: unknown field" in fault for fault in found)
    assert any("unknown stage 'ptqq'" in fault for fault in found)
    assert any("unknown option 'epoch'" in fault for fault in found)
    assert any(
        "stages[2] (qat) needs training() and loss(), which WithoutTraining lacks" in fault for fault in found
    )
    assert any("glob 'x*' matches no layer" in fault for fault in found)


def test_a_recipe_that_trains_needs_a_task_that_can():
    text = f"name: p\ntask: {HERE}/tiny.py:WithoutTraining\nrecipe: {{training: {{}}}}\nstages: [recipe]"
    assert faults(text) == ["recipe.training needs training() and loss(), which WithoutTraining lacks"]


def test_a_missing_file_and_one_that_is_no_mapping():
    with pytest.raises(PipelineError, match=r"nowhere.yaml: No such file"):
        read_plan(Path("nowhere.yaml"))
    assert faults("- a") == [
        "expected a mapping with the fields name, task, target, recipe, stages, until, threads, device"
    ]
    assert faults("name: [") == [
        "line 1, column 8 not valid YAML: expected the node content, but found '<stream end>'"
    ]


def test_a_file_that_is_far_too_large_is_refused():
    Path("plan.yaml").write_text("#" * 1_000_001)
    with pytest.raises(PipelineError, match="larger than 1,000,000 bytes"):
        read_plan(Path("plan.yaml"))


def test_a_file_in_another_encoding_is_refused():
    Path("plan.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(PipelineError, match="not a text file in UTF-8"):
        read_plan(Path("plan.yaml"))


def write_task(body):
    Path("mine.py").write_text(f"from qtrack import Task\n{body}")
    return "name: p\ntask: mine.py:Mine\nstages: [float]"


def test_a_task_that_cannot_be_imported_says_why():
    assert faults(write_task("1 / 0")) == ["task: cannot import mine.py: ZeroDivisionError: division by zero"]


def test_a_task_that_lacks_methods_names_them():
    text = write_task("class Mine(Task):\n    name = 'x'\n    def model(self): ...")
    assert faults(text) == ["task 'mine.py:Mine': Mine lacks calibration(), validation()"]


def test_a_task_without_a_name_says_so():
    body = "class Mine(Task):\n    def model(self): ...\n    calibration = validation = model"
    assert faults(write_task(body)) == [
        "task 'mine.py:Mine': Mine lacks name, a string that names the experiment"
    ]


def test_a_user_stage_is_found_beside_the_pipeline_file():
    Path("mine.py").write_text(
        "def clip(recipe, evidence, *, bits: int):\n    return recipe.with_weights(bits=bits)\n"
    )
    text = f"name: p\n{TASK}\nstages: [float, ptq, 'mine.py:clip': {{bits: 4}}]"
    assert plan(text).pipeline.stages[2].name == "clip"
    assert faults(text.replace("{bits: 4}", "{}")) == ["stages[2].clip.bits: is missing"]


def test_a_pipeline_can_be_built_in_python():
    pipeline = Pipeline(name="p", task="tests", stages=["float", {"qat": {"epochs": 2}}])
    assert plan_of(pipeline, Tiny()).pipeline.stages[1].options == {"epochs": 2}
    with pytest.raises(PipelineError, match="unknown stage 'ptqq'"):
        plan_of(pipeline.having(stages=["ptqq"]), Tiny())


def test_the_file_has_a_json_schema_for_editors():
    assert "stages" in Pipeline.model_json_schema()["properties"]


SHIPPED = sorted((HERE.parent / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if path.stem != "sweep"], ids=lambda path: path.name
)
def test_every_pipeline_that_we_ship_is_valid(path):
    assert read_plan(path).pipeline.stages
