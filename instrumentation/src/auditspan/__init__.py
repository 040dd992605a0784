"""Audit attributes for services that OpenTelemetry instruments."""
