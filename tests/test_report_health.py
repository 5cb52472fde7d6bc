from qtrack.report.health import Check, _engine, machine


def test_this_machine_works():
    checks = {check.what: check for check in machine()}
    assert not any(check.fails for check in checks.values())
    assert any(what.startswith("engine ") for what in checks)


def test_an_engine_that_does_not_exist_is_broken_and_not_necessary():
    check = _engine("abacus")
    assert check.state == "broken"
    assert not check.fails


def test_only_what_is_necessary_fails():
    assert Check("torch", "absent", "").fails
    assert not Check("torchao", "absent", "", necessary=False).fails
