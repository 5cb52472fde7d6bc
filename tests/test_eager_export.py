"""An eager model, exported: the recorded integers and scales, the arithmetic in float."""

import pytest
import torch
from test_eager import STATIC, STATIC_CONVS, TRAINED, Placed
from test_fx import Branching, task_of
from tiny import Tiny

from qtrack.engine import execute
from qtrack.engine.exporting import export_model
from qtrack.errors import BackendError


@pytest.mark.parametrize("recipe", [STATIC, TRAINED, STATIC.keeping_float("block")])
def test_the_exported_model_comes_to_nearly_the_same(recipe, alone):
    result = execute(Tiny(), recipe, thorough=False)
    exported = export_model(Tiny(), recipe, result.model, alone / "m.pt2")
    assert exported.form == "reference"
    assert exported.equal_predictions == 1
    loaded = torch.export.load(alone / "m.pt2").module()
    assert (loaded(*result.example) - result.model(*result.example)).abs().max() < 0.2


def test_recorded_parameters_are_exported_whatever_the_task_has_now(alone):
    class Retrained(Tiny):
        def model(self):
            net = super().model()
            torch.nn.init.normal_(net.head.weight)
            torch.nn.init.normal_(net.block.bn.bias)
            return net

    result = execute(Tiny(), STATIC, thorough=False)
    assert export_model(Retrained(), STATIC, result.model, alone / "m.pt2").equal_predictions == 1


def test_a_model_with_stubs_of_its_own_is_exported(alone):
    recipe = STATIC_CONVS.keeping_float("two")
    result = execute(task_of(Placed), recipe, thorough=False)
    assert export_model(task_of(Placed), recipe, result.model, alone / "m.pt2").equal_predictions == 1


def test_what_torch_does_not_export_is_refused_in_one_line(alone):
    result = execute(task_of(Branching), STATIC, thorough=False)
    with pytest.raises(BackendError, match="torch does not export the model") as error:
        export_model(task_of(Branching), STATIC, result.model, alone / "m.pt2")
    assert "\n" not in str(error.value)
