"""Measure the services that the command line names, all when it names none."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.instrumentation.extractors.turns import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.instrumentation.extractors.turns import Subject

ROOMS: Final = ("web", "rpc", "queues", "data", "tokens")


def subjects() -> Iterator[Subject]:
    """All of them, a module's when the ones before have been measured: what it imports is in its own processes only."""
    for room in ROOMS:
        yield from importlib.import_module(f"bench.instrumentation.extractors.{room}").SUBJECTS


def main() -> None:
    """A line of JSON for each."""
    folder, rounds, pairs, only = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    for number, subject in enumerate(subjects()):
        if not only or subject.on in only:
            print(json.dumps(measure(subject, folder / f"extractor-{number}", rounds, pairs)), flush=True)


if __name__ == "__main__":
    main()
