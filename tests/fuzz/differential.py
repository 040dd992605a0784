"""Change requests at random for a while, and compare what the paths say of each: the Selections, or the errors.

    python tests/fuzz/differential.py --seconds 600 [--seed N] [--interpreted]

A request on which they differ, or that takes longer than a minute, is written to tests/golden/found, where the tests
read it from then on. Exits with 1 when there was one.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import sys
import time
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

from collector.codec import both_paths  # noqa: E402 - the tests' folder first
from fuzz.mutations import mutated  # noqa: E402

FOUND = TESTS / "golden" / "found"
VECTORS = TESTS / "golden" / "vectors"
MAX_CORPUS = 4000
PATIENCE_S = 60


def corpus() -> list[bytes]:
    """What changes begin with: the golden vectors, what was found before, and what exporters sent."""
    folders = [VECTORS, FOUND, TESTS / "golden" / "exporters"]
    return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.bin"))]


def main() -> int:
    """Run, report, and answer with an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--interpreted", action="store_true", help="compare the interpreted form too")
    asked = parser.parse_args()
    random = Random(asked.seed)
    paths = [both_paths.Paths(limits) for limits in both_paths.LIMITS]
    if not asked.interpreted:
        for path in paths:
            path.encoders.pop("interpreted")
    seeds = corpus()
    grown = list(seeds)
    executions = differences = taken = 0
    current = FOUND / f".running-{asked.seed}.bin"
    FOUND.mkdir(exist_ok=True)
    began = time.monotonic()
    while time.monotonic() - began < asked.seconds:
        body = mutated(random.choice(grown if random.random() < 0.5 else seeds), random)
        current.write_bytes(body)
        faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
        path, sender = random.choice(paths), random.choice(both_paths.SENDERS)
        said = path.verdicts(body, sender)
        wanted = said["readable"]
        executions += 1
        if any(got != wanted for got in said.values()):
            differences += 1
            name = hashlib.sha256(body).hexdigest()[:16]
            (FOUND / f"{name}.bin").write_bytes(body)
            print(f"DIFFER {name}: {path.differ(body, sender)[:600]}", flush=True)
        if not isinstance(wanted, tuple):
            taken += 1
            if len(grown) < MAX_CORPUS and len(body) < 6000:
                grown.append(body)
    faulthandler.cancel_dump_traceback_later()
    current.unlink(missing_ok=True)
    print(
        f"seed {asked.seed}: {executions} executions in {asked.seconds:.0f} s "
        f"({time.process_time():.0f} s of CPU), {taken} of them valid requests, {differences} differences"
    )
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
