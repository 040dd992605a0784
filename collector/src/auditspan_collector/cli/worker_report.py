"""What workers say of themselves, put together so that Prometheus sees one collector.

Every series of a worker comes with the label ``worker``, its number: sums and the worst one are PromQL's to form, and
a worker's restart resets its own counters only. The collector's own series say how many workers there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LABEL: Final = "worker"


class Family(msgspec.Struct, frozen=True, array_like=True):
    """One metric of one worker; *samples* are (name, labels, value)."""

    name: str
    documentation: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class Report(msgspec.Struct, frozen=True):
    """A worker's answer to request *number*.

    *problem* is why it keeps no requests, empty when it does; *prepared* says whether the table is there.
    """

    number: int
    problem: str
    prepared: bool
    families: list[Family]


class Greeting(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's first line: it takes requests, or *error* says why not; *wrong_setting* that it is a ConfigError."""

    error: str = ""
    wrong_setting: bool = False


def families(registry: CollectorRegistry) -> list[Family]:
    """Every metric of *registry* as it is now."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            [(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples],
        )
        for metric in registry.collect()
    ]


class Reporter(Protocol):
    """A worker as its supervisor sees it."""

    @property
    def number(self) -> int:
        """From 1."""

    @property
    def deaths(self) -> int:
        """How often it ended without being asked to."""

    def report(self) -> Report | None:
        """What it says now; None when it does not answer."""


class Merged(Collector):
    """The metrics of all workers, read at each scrape."""

    def __init__(self, workers: Sequence[Reporter]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """Ask every worker."""
        reports = [(worker, worker.report()) for worker in self._workers]
        yield from own(
            [worker for worker, _ in reports],
            up=sum(report is not None and not report.problem for _, report in reports),
        )
        yield from merge(
            [(worker.number, report.families) for worker, report in reports if report is not None]
        )


def own(workers: Sequence[Reporter], *, up: int) -> Iterator[Metric]:
    """The metrics of the collector as a whole, *up* of its *workers* taking requests."""
    yield GaugeMetricFamily("auditspan_workers", "Workers that there should be", value=len(workers))
    yield GaugeMetricFamily("auditspan_workers_up", "Workers that take requests", value=up)
    deaths = CounterMetricFamily(
        "auditspan_worker_deaths",
        "How often a worker ended without being asked to; it is started again",
        labels=[LABEL],
    )
    for worker in workers:
        deaths.add_metric([str(worker.number)], worker.deaths)
    yield deaths


def merge(reports: Iterable[tuple[int, list[Family]]]) -> Iterator[Metric]:
    """One family a metric, with the samples of all workers under their numbers."""
    merged: dict[str, Metric] = {}
    for number, found in reports:
        for family in found:
            metric = merged.get(family.name)
            if metric is None:
                metric = merged[family.name] = Metric(family.name, family.documentation, family.type)
            for name, labels, value in family.samples:
                metric.add_sample(name, {**labels, LABEL: str(number)}, value)
    yield from merged.values()


def merged_registry(workers: Sequence[Reporter]) -> CollectorRegistry:
    """A registry for *MetricsServer*."""
    # Not described in advance: that would ask the workers before they are there.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Merged(workers))
    return registry


def markdown() -> str:
    """The part of docs/metrics.md about several workers."""
    rows = [
        f"| `{metric.name}{'_total' if metric.type == 'counter' else ''}` | {metric.type} | {metric.documentation} |"
        for metric in own([], up=0)
    ]
    return "\n".join([_INTRODUCTION, *rows, ""])


_INTRODUCTION: Final = """\

## With several workers

One listener serves the metrics of all workers (`collector.workers`), each series with the label `worker`, its number;
`sum without (worker) (...)` is the collector's. These are about the whole. `/healthz` is `ok` while any worker takes
records, and names those that do not. Worth an alarm: `auditspan_workers_up < auditspan_workers` for a minute.

| metric | type | meaning |
|---|---|---|"""
