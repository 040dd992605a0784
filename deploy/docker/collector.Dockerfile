# syntax=docker/dockerfile:1
# The collector and the `auditspan` command, for use with a ClickHouse server; the embedded store is not inside.
#
#   docker build --file deploy/docker/collector.Dockerfile --tag auditspan/collector:0.1.0 .
#   docker run --rm auditspan/collector:0.1.0 search --help
#
# Not run where it was written, for there was no Docker engine: the build as a whole, USER and VOLUME.
# Run there: the pip commands in a fresh virtual environment of Python 3.12, and from it the collector with the
# configuration of deploy/compose, health.py against it, and the `auditspan` command.

FROM python:3.12-slim-trixie AS build
WORKDIR /src
COPY constraints.txt ./
COPY proto proto
COPY instrumentation instrumentation
COPY collector collector
RUN python -m venv /opt/auditspan \
    && /opt/auditspan/bin/python -m pip install --no-cache-dir --constraint constraints.txt pip setuptools wheel \
    && /opt/auditspan/bin/python -m pip install --no-cache-dir --constraint constraints.txt --no-build-isolation \
        ./proto ./instrumentation ./collector \
    && /opt/auditspan/bin/python -m pip uninstall --yes setuptools wheel pip

FROM python:3.12-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Auditspan collector" \
      org.opencontainers.image.description="Keeps audit-tagged OpenTelemetry spans, seals them in a ledger and stores them in ClickHouse" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# The spool's folder is made here so that a new named volume starts with this owner and mode.
RUN groupadd --system --gid 10001 auditspan \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin auditspan \
    && install --directory --owner=auditspan --group=auditspan --mode=0700 /var/lib/auditspan
COPY --from=build /opt/auditspan /opt/auditspan
COPY deploy/docker/health.py /opt/auditspan/health.py
ENV PATH=/opt/auditspan/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

USER 10001:10001
VOLUME /var/lib/auditspan
# OTLP/gRPC, OTLP/HTTP, Prometheus metrics
EXPOSE 4317 4318 8888
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/opt/auditspan/bin/python", "/opt/auditspan/health.py", "127.0.0.1:4317"]
ENTRYPOINT ["/opt/auditspan/bin/auditspan"]
CMD ["collect", "--config", "/etc/auditspan/collector.yaml"]
