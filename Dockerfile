# The image of wasmer (and wasmc: --entrypoint wasmc): our wheel and its runtime dependencies on Python, no compiler, no
# package of the tests, a user without a name.
#
#   docker build -t registry.example.com/platform/wasmer:0.1.0 .
#
# The base is pinned by version. Pin it by digest where you release: --build-arg BASE=python:3.13.7-slim-bookworm@sha256:...
ARG BASE=python:3.13.7-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# Without pip: the image installs nothing any more. --python makes the builder's pip do it.
RUN python -m venv --without-pip /opt/autowasm \
    && python -m pip --python /opt/autowasm/bin/python install --no-cache-dir --only-binary :all: \
        --constraint constraints.txt /wheels/*.whl
RUN mkdir -p /rootfs/var/cache/wasmer

FROM ${BASE}
LABEL org.opencontainers.image.title="wasmer" \
      org.opencontainers.image.description="Puts WebAssembly filters into running Envoy sidecars of an Istio mesh" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/autowasm /opt/autowasm
# The only place that is written to; in a cluster a volume is mounted over it and the rest is read-only.
COPY --from=build --chown=65532:65532 /rootfs/var/cache/wasmer /var/cache/wasmer
ENV PATH=/opt/autowasm/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /var/cache/wasmer
EXPOSE 8081 8080
# Probes are the kubelet's (manifests/install.yaml), so there is no HEALTHCHECK. SIGTERM, the default, stops it in order.
ENTRYPOINT ["wasmer"]
