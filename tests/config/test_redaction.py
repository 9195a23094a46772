"""redacted(): the active config without secrets."""

from __future__ import annotations

import json

from rgate.config import Config
from rgate.config.redaction import redacted
from rgate.plugins.docker import DockerOptions

from .configs import loaded


def test_redacted_hides_whatever_stands_under_a_secret_key() -> None:
    config = Config.model_validate(
        {
            "backends": [{"name": "a", "tls": {"certificate": "a.pem", "key": "a.key", "key_password": "opensesame"}}],
            "use": [{"app": "x:y", "options": {"api_token": 4711, "tokens": ["one", "two"], "cookie": {"name": "three"}}}],
        }
    )
    found = redacted(config, {})
    assert found["backends"][0]["tls"]["key_password"] == "***"
    assert found["backends"][0]["tls"]["key"] == "a.key", "the name of a file is no secret"
    assert found["use"][0]["options"] == {"api_token": "***", "tokens": ["***", "***"], "cookie": {"name": "***"}}


def test_redacted_says_the_text_of_the_file_in_place_of_the_environment() -> None:
    config = loaded(
        """
        plugins: {docker: {host: "tcp://${ENGINE}:2375"}}
        backends: [{name: a, endpoints: ["http://${ENGINE}:80"], sticky: {cookie: x, secret: 0123456789abcdef}}]
    """,
        environ={"ENGINE": "10.0.0.9"},
    )
    found = config.redacted()
    assert found["plugins"]["docker"]["host"] == "tcp://${ENGINE}:2375"
    assert found["backends"][0]["endpoints"] == ["http://${ENGINE}:80"]
    assert found["backends"][0]["sticky"] == {"cookie": "***", "secret": "***", "max_age_seconds": None}
    assert "10.0.0.9" not in json.dumps(found)


def test_redacted_takes_names_and_passwords_out_of_urls() -> None:
    config = Config.model_validate({"plugins": {"docker": DockerOptions(host="tcp://user:opensesame@10.0.0.9:2375")}})
    assert redacted(config, {})["plugins"]["docker"]["host"] == "tcp://***@10.0.0.9:2375"


def test_redacted_has_the_keys_of_the_file() -> None:
    found = redacted(Config.model_validate({"routes": [{"path_prefix": "/", "backend": "a", "host": "x.example"}]}), {})
    assert found["routes"][0]["host"] == ["x.example"]
    assert "disabled" not in found and found["plugins"]["disable"] == []


def test_redacted_takes_an_option_that_is_no_plain_value_by_its_repr() -> None:
    config = Config.model_validate({"use": [{"app": "x:y", "options": {"kind": object}}]})
    assert json.dumps(redacted(config, {})["use"][0]["options"]) == '{"kind": "<class \'object\'>"}'


def test_redacted_has_what_the_core_was_told_of_plugins() -> None:
    config = loaded("plugins: {routing: {timed: true}, normalize: {on_error: {disable_after: 3}}, retry: true}")
    plugins = config.redacted()["plugins"]
    assert plugins["routing"] == {"timed": True}
    assert plugins["normalize"]["on_error"] == {"disable_after": 3} and plugins["normalize"]["format"] == "passthrough"
    assert "on_error" not in plugins["retry"]
