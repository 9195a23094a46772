from rgate.serving.readiness import Readiness


def test_a_condition_is_ready_until_somebody_objects_and_again_when_nobody_does() -> None:
    condition = Readiness()
    assert condition.ready
    condition.not_ready_reasons["stopping"] = "SIGTERM"
    condition.notices["config"] = "the earlier one is kept"
    assert not condition.ready
    condition.not_ready_reasons.pop("stopping")
    assert condition.ready, "a notice alone keeps nobody out"
