from rgate.serving.readiness import Condition


def test_a_condition_is_ready_until_somebody_objects_and_again_when_nobody_does() -> None:
    condition = Condition()
    assert condition.ready
    condition.unready["stopping"] = "SIGTERM"
    condition.notices["config"] = "the earlier one is kept"
    assert not condition.ready
    condition.unready.pop("stopping")
    assert condition.ready, "a notice alone keeps nobody out"
