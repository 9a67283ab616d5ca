# The image of wasmer (and wasmc: --entrypoint wasmc): our wheel and its runtime dependencies on Python, no compiler, no
# package of the tests, a user without a name.
#
#   docker build -t registry.example.com/platform/wasmer:0.1.0 .
#
# The base is pinned by digest, an index of all platforms: github.com/docker-library/repo-info records it under
# repos/python/remote/3.13.14-slim-bookworm.md. Dependabot renews it.
ARG BASE=python:3.13.14-slim-bookworm@sha256:67a1e1f215ccda113cfc024e8639049257e88f273898f595b61476d128d387e8

FROM ${BASE} AS build
WORKDIR /build
# What `wasmer --version` reports: the commit, and the seconds since 1970 of the build. The context has no repository.
ARG COMMIT=""
ARG SOURCE_DATE_EPOCH
COPY pyproject.toml README.md LICENSE requirements.txt requirements-build.txt hatch_build.py ./
# Both files of requirements come from uv.lock: versions and hashes of all that goes into the image besides us.
# Without pip: the image installs nothing any more. --python makes the builder's pip do it.
RUN python -m venv --without-pip /opt/autowasm \
    && python -m pip --python /opt/autowasm/bin/python install --no-cache-dir --only-binary :all: \
        --require-hashes --requirement requirements.txt
COPY src ./src
RUN python -m pip install --no-cache-dir --only-binary :all: --require-hashes --requirement requirements-build.txt \
    && AUTOWASM_COMMIT=${COMMIT} python -m pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
    && python -m pip --python /opt/autowasm/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl
RUN mkdir -p /rootfs/var/cache/wasmer

FROM ${BASE}
ARG COMMIT=""
ARG CREATED=""
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="wasmer" \
      org.opencontainers.image.description="Puts WebAssembly filters into running Envoy sidecars of an Istio mesh" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="The AutoWasm maintainers" \
      org.opencontainers.image.url="https://autowasm.github.io/autowasm/" \
      org.opencontainers.image.documentation="https://autowasm.github.io/autowasm/" \
      org.opencontainers.image.source="https://github.com/autowasm/autowasm" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}"
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
