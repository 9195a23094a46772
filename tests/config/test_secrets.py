from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel
from sqlalchemy.engine import make_url

from rgate import ConfigProblem, ConfigSection, hookimpl
from rgate.config import Config
from rgate.config.tree import without_password
from rgate.plugin.registry import Registry

from .configs import loaded, problems

SECRET = "hunter2-correct-horse"


def _refuse(text: str) -> str:
    raise ValueError(f"{text!r} is not good enough")


class Options(BaseModel):
    password: Annotated[str, AfterValidator(_refuse)] | int = 0
    api_token: int = 0
    url: Annotated[str, AfterValidator(_refuse)] = ""


class Vault:
    @hookimpl
    def rgate_config_sections(self) -> ConfigSection:
        return ConfigSection("vault", Options)

    @hookimpl
    def rgate_check_config(self, config: Config) -> list[ConfigProblem]:
        return [ConfigProblem(("server",), f"the vault does not open with {SECRET}")]


@pytest.mark.parametrize(
    "option",
    [
        f"password: {SECRET}",
        f"api_token: {SECRET}",
        f"api_token: {{value: {SECRET}}}",
        f"url: http://user:{SECRET}@vault.example/",
        "url: ${VAULT_URL}",
        f"secret_of_mine: {SECRET}",
    ],
)
def test_problem_with_a_secret_says_what_is_wrong_and_not_the_secret(option: str) -> None:
    registry = Registry()
    registry.register("vault", Vault())
    environ = {"VAULT_URL": f"http://{SECRET}/"}
    found = problems(f"server: {{port: 1}}\nplugins:\n  vault:\n    {option}\n", registry, environ)
    assert any(line.startswith("config.yml:4: plugins.vault") for line in found), found
    printed = "\n".join(found)
    assert SECRET not in printed.replace(f"open with {SECRET}", ""), printed


def test_secret_is_taken_out_of_what_plugins_say_elsewhere() -> None:
    registry = Registry()
    registry.register("vault", Vault())
    found = problems(f"server: {{port: 1}}\nplugins: {{vault: {{api_token: {SECRET}}}}}\n", registry)
    assert found[0] == "config.yml:1: server: the vault does not open with ***"


def test_problem_with_a_use_option_does_not_print_a_secret() -> None:
    found = problems(f"use: [{{app: 'werkzeug.middleware.proxy_fix:ProxyFix', options: {{x_forr: 1, token: {SECRET}}}}}]")
    assert found
    assert SECRET not in "\n".join(found)


PASSWORDS = ["horse", "ho/rse", "ho#rse", "ho?rse", "ho@rse", "ho rse", "ho'rse", 'ho"rse', "h%2Fo:rse", "12/rse"]
URLS = [
    *(f"postgresql://user:{password}@db.example/rgate" for password in PASSWORDS),
    *(f"redis://:{password}@cache.example:6379/0" for password in PASSWORDS),
    "postgresql://db.example/rgate?user=user&password=horse",
    "postgresql://db.example/rgate?sslmode=require&PassWord=horse&x=1",
    "postgresql://db.example/rgate?p%61ssword=horse",
    "https://hooks.example/x?token=horse",
    "https://user:ho/rse@hooks.example/x",
]


@pytest.mark.parametrize("url", URLS)
def test_password_in_a_url_is_never_shown(url: str) -> None:
    shown = without_password(url)
    assert "rse" not in shown and "***" in shown, shown
    assert ".example" in shown, "where it is may be shown"
    registry = Registry()
    registry.register("vault", Vault())
    quoted = url.replace("\\", "\\\\").replace('"', '\\"')
    (printed, _) = problems(f'plugins: {{vault: {{url: "{quoted}"}}}}\n', registry)
    assert "is not good enough" in printed and "rse" not in printed, printed


@pytest.mark.parametrize("url", [url for url in URLS if url.startswith("postgresql")])
def test_password_that_sqlalchemy_finds_is_not_shown(url: str) -> None:
    found = make_url(url)
    password = found.password or next(value for name, value in found.query.items() if name.lower() == "password")
    assert str(password) not in without_password(url)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:9000/a@b",
        "https://[::1]/x?y=1@2",
        "unix:///run/x@y.sock",
        "git://host/a@b",
        "me@example.org",
        "a?token=b",
    ],
)
def test_text_without_a_password_is_shown_as_it_is(text: str) -> None:
    assert without_password(text) == text


def test_password_in_the_second_url_of_a_text_is_not_shown() -> None:
    assert without_password("http://a.example/x or redis://u:horse@b") == "http://a.example/x or redis://***@b"


def test_password_that_is_a_default_of_a_variable_is_not_shown() -> None:
    config = loaded("plugins: {stats: {database: '${NO_SUCH_URL:-postgresql://u:ho/rse@db/x}'}}")
    assert config.redacted()["plugins"]["stats"]["database"] == "${NO_SUCH_URL:-postgresql://***@db/x}"
