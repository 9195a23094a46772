"""The config file, and what in it cannot change without a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from rgate.runtime.reload import ConfigFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "config.yml"
    file.write_text("plugins: {disable: [stats]}\nserver: {reload_on_change: true}\n")
    return file


def test_tls_that_comes_or_goes_stays_as_it_was(file: Path) -> None:
    certificate = str(Path(__file__).parent.parent / "forwarding" / "certificates" / "server.pem")
    source = ConfigFile(str(file))
    before = source.build_gateway()
    file.write_text(file.read_text().replace("server: {", f"server: {{tls: {{certificate: {certificate}}}, "))
    after = source.build_gateway(before.runtime)
    assert (after.tls, source.needs_restart) == (None, ("server.tls stays off until a restart",))
    with_tls = ConfigFile(str(file)).build_gateway()
    file.write_text(file.read_text().replace("tls: {", "tls: {redirect_port: 0, "))
    after = source.build_gateway(with_tls.runtime)
    assert after.config.server.tls is not None and after.config.server.tls.redirect_port is None
    assert source.needs_restart == ("server.tls.redirect_port stays until a restart",)
    assert after.tls is not None
