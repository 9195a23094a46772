# rgate itself; deploy/compose.yml runs it.
#   docker build -t rgate .
#   docker run --read-only --tmpfs /run/rgate:uid=10001,mode=0700 -p 8080:8080 -v "$PWD:/etc/rgate:ro" -v rgate-statistics:/var/lib/rgate \
#       -v /var/run/docker.sock:/var/run/docker.sock --group-add "$(stat -c %g /var/run/docker.sock)" rgate
# Containers that share a network with it are reached there, without published ports. In it: docker exec NAME rgate stats.
ARG BASE_IMAGE=python:3.13-slim
# What it is built in: the same Python with pip or ensurepip. Nothing of it but /opt/rgate is in the image.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# The releases that rgate has been tested with, each held to its hash; as a layer of its own, since they change seldom.
COPY deploy/requirements.txt ./
RUN python3 -m venv /opt/rgate \
    && /opt/rgate/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --requirement requirements.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY rgate rgate
# Nothing more is fetched: setuptools, which builds it, is among them. `pip check` fails where they are not what rgate needs.
RUN /opt/rgate/bin/pip install --no-cache-dir --no-deps --no-build-isolation . && /opt/rgate/bin/pip check \
    && /opt/rgate/bin/pip uninstall --quiet --yes pip setuptools

FROM ${BASE_IMAGE}
RUN groupadd --gid 10001 rgate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/rgate --shell /usr/sbin/nologin rgate \
    && install --directory --owner=rgate --group=rgate /var/lib/rgate \
    && install --directory --owner=rgate --group=rgate --mode=0700 /run/rgate
COPY --from=build /opt/rgate /opt/rgate
ENV PATH=/opt/rgate/bin:$PATH
# By number: Kubernetes' runAsNonRoot does not look into /etc/passwd.
USER 10001:10001
# What is written to: the statistics database here, and the admin socket in /run/rgate (with a read-only root, a tmpfs).
VOLUME /var/lib/rgate
WORKDIR /var/lib/rgate
# For `docker exec CONTAINER rgate stats`.
ENV PATH=/opt/rgate/bin:$PATH
EXPOSE 8080
STOPSIGNAL SIGTERM
# It asks at the admin socket, so at whatever port and with whatever TLS. Without --config, which would import the gateway every
# ten seconds.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/opt/rgate/bin/rgate", "healthcheck"]
ENTRYPOINT ["/opt/rgate/bin/rgate"]
CMD ["--host", "0.0.0.0", "--port", "8080", "--config", "/etc/rgate/config.yml"]
