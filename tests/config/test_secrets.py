from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel

from rgate import ConfigProblem, ConfigSection, hookimpl
from rgate.config import Config
from rgate.registry import Registry

from .configs import problems

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
