# rgate itself:
#   docker build -t rgate .
#   docker run -p 8080:8080 -v "$PWD/config.yml:/etc/rgate/config.yml:ro" -v /var/run/docker.sock:/var/run/docker.sock \
#       --group-add "$(stat -c %g /var/run/docker.sock)" rgate
# Containers that share a network with it are reached there, without published ports.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY rgate rgate
RUN python3 -m venv /opt/rgate && /opt/rgate/bin/pip install --no-cache-dir .

FROM ${BASE_IMAGE}
COPY --from=build /opt/rgate /opt/rgate
RUN useradd --system --create-home --home-dir /var/lib/rgate rgate
USER rgate
# The statistics database lies here: mount a volume to keep it.
WORKDIR /var/lib/rgate
EXPOSE 8080
ENTRYPOINT ["/opt/rgate/bin/rgate"]
CMD ["--host", "0.0.0.0", "--port", "8080", "--config", "/etc/rgate/config.yml"]
