# syntax=docker/dockerfile:1
# The services of the example shop; which one runs is the command's to say (deploy/compose/compose.yaml).
# The same image with and without auditing: the services have no audit code, `opentelemetry-instrument` adds it.
#
#   docker build --file deploy/docker/shop.Dockerfile --tag auditspan/shop:0.1.0 .
#
# Not run where it was written, for there was no Docker engine: the build as a whole, USER and VOLUME.
# Run there: the pip commands in a fresh virtual environment of Python 3.12, and from it the services with the
# commands and environments of deploy/compose.

FROM python:3.12-slim-trixie AS build
WORKDIR /src
COPY constraints.txt ./
COPY instrumentation instrumentation
COPY examples/shop/requirements.txt shop-requirements.txt
RUN python -m venv /opt/shop \
    && /opt/shop/bin/python -m pip install --no-cache-dir --constraint constraints.txt pip setuptools wheel \
    && /opt/shop/bin/python -m pip install --no-cache-dir --constraint constraints.txt --no-build-isolation \
        --requirement shop-requirements.txt ./instrumentation \
    && /opt/shop/bin/python -m pip uninstall --yes setuptools wheel pip

FROM python:3.12-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Auditspan's example shop" \
      org.opencontainers.image.description="Small services that don't know they are audited" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# /var/lib/shop holds a service's data, /var/lib/queue what waits for shipping, /var/lib/auditspan a service's records
# until the collector has them.
RUN groupadd --system --gid 10002 shop \
    && useradd --system --uid 10002 --gid 10002 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin shop \
    && install --directory --owner=shop --group=shop --mode=0700 /var/lib/shop /var/lib/queue \
        /var/lib/auditspan
COPY --from=build /opt/shop /opt/shop
COPY examples/shop /opt/shop/services/shop
COPY deploy/docker/health.py /opt/shop/health.py
ENV PATH=/opt/shop/bin:$PATH \
    PYTHONPATH=/opt/shop/services \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

USER 10002:10002
WORKDIR /var/lib/shop
VOLUME ["/var/lib/shop", "/var/lib/queue", "/var/lib/auditspan"]
EXPOSE 8000 8001 8002 8003
STOPSIGNAL SIGTERM
# Each service is checked at its own address, so the check stands with the command in compose.yaml.
CMD ["opentelemetry-instrument", "uvicorn", "--factory", "shop.gateway.app:create_app", "--host", "0.0.0.0", "--port", "8000"]
