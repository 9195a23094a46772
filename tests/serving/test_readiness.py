from rgate.serving.readiness import Readiness


def test_process_is_ready_unless_there_is_a_reason_against_it() -> None:
    readiness = Readiness()
    assert readiness.ready
    readiness.not_ready_reasons["stopping"] = "SIGTERM"
    readiness.warnings["config"] = "the previous one stays active"
    assert not readiness.ready
    readiness.not_ready_reasons.pop("stopping")
    assert readiness.ready, "a warning alone does not make it unready"


def test_limits_are_checked_under_another_wsgi_server() -> None:
    server = Readiness().server
    assert server.saturated
    assert server.open_counts() == {}
