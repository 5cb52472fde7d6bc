"""A recipe that asks a backend for what it does not do is refused before anything runs."""

import subprocess
import sys

import pytest
import yaml
from memory import Memory
from tiny import Tiny

from qtrack import execute
from qtrack.backends import BACKENDS, load_backend
from qtrack.backends.capabilities import CAPABILITIES, asked, check, faults
from qtrack.campaign import run_plan
from qtrack.engine import settled
from qtrack.errors import BackendUnavailable, PipelineError, RecipeError
from qtrack.pipeline import Pipeline, plan_of, read_plan
from qtrack.recipe import Recipe, Training, WeightOnly, WeightSpec

GROUPS = WeightOnly(weight=WeightSpec(granularity="per_group", group_size=32))


def test_every_backend_has_a_table():
    assert list(CAPABILITIES) == list(BACKENDS)


def test_a_missing_feature_is_named_with_the_backends_that_have_it():
    with pytest.raises(RecipeError) as error:
        check(Recipe(default=GROUPS))
    assert str(error.value) == (
        "recipe.default.weight.granularity: backend 'fx' has no weight_only.weight.granularity per_group "
        "(it has per_tensor, per_channel; torchao has it)"
    )


def test_a_missing_mode_is_one_fault_whatever_is_said_of_its_fields():
    recipe = Recipe(backend="torchao")
    assert faults(recipe) == [
        "recipe.default.mode: backend 'torchao' has no mode static "
        "(it has dynamic, weight_only, torchao, float; fx, eager, pt2e have it)"
    ]


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (Recipe(backend="torchao", default="weight_only"), "default.weight.granularity"),
        (Recipe(backend="pt2e", engine="x86"), "engine"),
        (Recipe(backend="pt2e", non_traceable=("gate",)), "non_traceable"),
        (Recipe(default={"mode": "torchao", "config": {}}), "default.mode"),
        (
            Recipe(backend="eager", overrides=[{"function": "add", "scheme": "float"}]),
            "overrides[0].function",
        ),
        (Recipe(overrides=[{"layer": "a", "scheme": GROUPS}]), "overrides[0].scheme.weight.granularity"),
    ],
)
def test_each_feature_is_looked_at_where_it_stands(recipe, field):
    assert [fault.partition(": ")[0] for fault in faults(recipe)] == [f"recipe.{field}"]


def test_what_all_recipes_share_is_no_feature():
    assert {use.field for use in asked(Recipe(seed=3))} == {
        "default.mode",
        *(f"default.weight.{name}" for name in ("bits", "symmetric", "granularity", "observer")),
        *(f"default.activation.{name}" for name in ("bits", "symmetric", "reduce_range", "observer")),
    }


def test_nothing_is_computed_for_a_recipe_that_cannot_be_carried_out():
    class Untouched(Tiny):
        def model(self):
            raise AssertionError

    with pytest.raises(RecipeError, match="has no mode static"):
        execute(Untouched(), Recipe(backend="torchao"))


def test_a_pipeline_file_is_refused_with_all_faults(tmp_path):
    (tmp_path / "mine.py").write_text("from tiny import Tiny\n")
    recipe = {
        "backend": "torchao",
        "training": {},
        "non_traceable": ["gone"],
        "overrides": [{"type": "Nope", "scheme": "float"}],
    }
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({"name": "m", "task": "mine.py:Tiny", "recipe": recipe, "stages": ["float"]})
    )
    with pytest.raises(PipelineError) as error:
        read_plan(file)
    said = [fault.partition("mine.yaml: ")[2] for fault in error.value.faults]
    assert [line.partition(": ")[0] for line in said] == [
        "recipe.overrides[0]",
        "recipe.non_traceable[0]",
        "recipe.training",
        "recipe.non_traceable",
        "recipe.default.mode",
    ]
    assert said[1] == "recipe.non_traceable[0]: Tiny's model has no module 'gone'"


def test_only_backends_with_engines_have_one_settled():
    assert settled(Recipe()).engine
    assert settled(Recipe(backend="pt2e")).engine is None


def test_a_backend_whose_package_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr("qtrack.backends.capabilities.find_spec", lambda package: None)
    with pytest.raises(BackendUnavailable, match=r"'pt2e': not installed: pip install 'qtrack\[pt2e\]'"):
        load_backend("pt2e")


def test_the_tables_need_neither_torch_ao_nor_torchao():
    code = (
        "import sys, qtrack.backends.capabilities; print([m for m in sys.modules if m.startswith('torchao') "
        "or m == 'torch.ao.quantization.quantize_fx'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_training_is_a_feature():
    assert not faults(Recipe(training=Training()))
    assert faults(Recipe(backend="torchao", default="dynamic").with_weights(granularity="per_channel")) == []


def test_a_stage_that_leads_to_what_its_backend_has_not_is_named():
    stages = ["float", "ptq", {"backend": {"to": "torchao", "name": "packed"}}]
    pipeline = Pipeline(name="p", task="tiny:Tiny", stages=stages)
    with pytest.raises(RecipeError, match=r"^stage packed: recipe\.default\.mode: backend 'torchao'"):
        run_plan(plan_of(pipeline, Tiny()), Memory())
