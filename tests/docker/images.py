"""Images that the tests make, built only when what goes into them has changed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from docker.client import DockerClient
from docker.errors import APIError, ImageNotFound

__all__ = ["build_gateway_image", "build_haproxy_image", "build_orders_image", "build_stage_image", "build_systemd_image"]

ROOT = Path(__file__).parents[2]
ORDERS = ROOT / "backends" / "orders"
REQUIREMENTS = ROOT / "deploy" / "requirements.txt"
OLD_SECONDS = 3_600.0

_HAPROXY = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends haproxy >/dev/null && rm -rf /var/lib/apt/lists/*
"""
_SYSTEMD = """\
ARG BASE_IMAGE
ARG GATEWAY_IMAGE
FROM ${GATEWAY_IMAGE} AS rgate
FROM ${BASE_IMAGE}
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends systemd systemd-sysv >/dev/null \\
    && rm -rf /var/lib/apt/lists/*
COPY --from=rgate /opt/rgate /opt/rgate
COPY rgate.service rgate.socket orders.service /etc/systemd/system/
COPY listen.conf /etc/systemd/system/rgate.socket.d/listen.conf
COPY app.py /opt/orders/app.py
# The engine mounts control groups read-only, and systemd has to write to its own part of them.
CMD for at in /sys/fs/cgroup /sys/fs/cgroup/*/; do mountpoint -q $at && mount -o remount,bind,rw $at; done; \\
    container=docker exec /lib/systemd/systemd
"""
_LISTEN = """\
[Socket]
ListenStream=
ListenStream=0.0.0.0:8080
"""
_ORDERS_UNIT = """\
[Service]
ExecStart=python3 /opt/orders/app.py --port 9000
DynamicUser=yes
[Install]
WantedBy=multi-user.target
"""
# Where pip has no index of its own to ask, as in most containers of a test machine: it finds all it needs in a folder.
_BUILD_STAGE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN python3 -c 'import ensurepip' 2>/dev/null \\
    || (apt-get update -qq && apt-get install -qq --yes --no-install-recommends python3-venv >/dev/null)
COPY wheels /wheels
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
"""


def build_orders_image(client: DockerClient, base_image: str) -> str:
    """The name of an image of backends/orders."""
    with _once(client, "rgate-test-orders", base_image, [ORDERS / "Dockerfile", ORDERS / "app.py"]) as (tag, there):
        if not there:
            client.images.build(path=str(ORDERS), buildargs={"BASE_IMAGE": base_image}, tag=tag, rm=True)
    return tag


def build_haproxy_image(client: DockerClient, base_image: str) -> str:
    """The name of an image with haproxy on its path, as the official one has it."""
    with _once(client, "rgate-test-haproxy", base_image, [], _HAPROXY) as (tag, there):
        if not there:
            _build(client, {"Dockerfile": _HAPROXY}, tag, base_image)
    return tag


def build_stage_image(client: DockerClient, base_image: str) -> str:
    """The name of an image in which the Dockerfile's `pip install` needs no network."""
    with _once(client, "rgate-test-build", base_image, [REQUIREMENTS], _BUILD_STAGE) as (tag, there):
        if not there:
            python = "import sys; print(*sys.version_info[:2], sep='.')"
            version = client.containers.run(base_image, ["python3", "-c", python], remove=True).decode().strip()
            with tempfile.TemporaryDirectory(prefix="rgate-") as wheels:
                _download(version, wheels)
                _build(client, {"Dockerfile": _BUILD_STAGE, "wheels": Path(wheels)}, tag, base_image)
    return tag


def build_gateway_image(client: DockerClient, base_image: str) -> str:
    """The name of an image made of the project's own Dockerfile."""
    stage = build_stage_image(client, base_image)
    files = sorted((ROOT / "rgate").rglob("*.py"))
    files += [ROOT / name for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "setup.py", "README.md", "LICENSE")]
    files.append(REQUIREMENTS)
    with _once(client, "rgate-test-gateway", base_image, files, stage) as (tag, there):
        if not there:
            arguments = {"BASE_IMAGE": base_image, "BUILD_IMAGE": stage}
            client.images.build(path=str(ROOT), buildargs=arguments, target="build", tag=f"{tag}-build", rm=True)
            client.images.build(path=str(ROOT), buildargs=arguments, tag=tag, rm=True)
    return tag


def build_systemd_image(client: DockerClient, base_image: str, gateway_image: str) -> str:
    """The name of an image that boots systemd and has the units of deploy/: rgate at port 8080, without a config and not yet
    started, and `orders` at port 9000."""
    units = [ROOT / "deploy" / "rgate.service", ROOT / "deploy" / "rgate.socket"]
    text = gateway_image + _SYSTEMD + _LISTEN + _ORDERS_UNIT
    with _once(client, "rgate-test-systemd", base_image, [*units, ORDERS / "app.py"], text) as (tag, there):
        if not there:
            content: dict[str, str | Path] = {unit.name: unit for unit in units}
            content |= {
                "Dockerfile": _SYSTEMD,
                "listen.conf": _LISTEN,
                "orders.service": _ORDERS_UNIT,
                "app.py": ORDERS / "app.py",
            }
            _build(client, content, tag, base_image, GATEWAY_IMAGE=gateway_image)
    return tag


@contextlib.contextmanager
def _once(
    client: DockerClient, repository: str, base_image: str, files: list[Path], text: str = ""
) -> Iterator[tuple[str, bool]]:
    """The tag for this content, and whether there is such an image. Of several processes one at a time is inside."""
    content = hashlib.sha256(str(client.images.get(base_image).id).encode() + text.encode())
    for file in files:
        content.update(file.read_bytes())
    tag = f"{repository}:{content.hexdigest()[:12]}"
    with Path(tempfile.gettempdir(), f"{repository}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            client.images.get(tag)
        except ImageNotFound:
            _remove_old(client, repository)
            yield tag, False
        else:
            yield tag, True


def _remove_old(client: DockerClient, repository: str) -> None:
    for image in client.images.list(repository):
        if time.time() - image.history()[0]["Created"] > OLD_SECONDS:
            with contextlib.suppress(APIError):  # in use
                for tag in image.tags:
                    client.images.remove(tag)


def _build(client: DockerClient, content: dict[str, str | Path], tag: str, base_image: str, **arguments: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, what in content.items():
            if isinstance(what, Path):
                archive.add(what, name)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(what.encode())
                archive.addfile(member, io.BytesIO(what.encode()))
    packed.seek(0)
    arguments["BASE_IMAGE"] = base_image
    client.images.build(fileobj=packed, custom_context=True, buildargs=arguments, tag=tag, rm=True, network_mode="host")


def _download(python_version: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--no-deps", "--require-hashes"]
    command += ["--python-version", python_version, "--dest", folder, "--requirement", str(REQUIREMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"pip download failed:\n{done.stderr}"
