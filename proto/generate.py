"""Generate src/auditspan_proto from the .proto files; a test runs this and compares."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent
SOURCES = sorted((ROOT / "auditspan" / "v1").glob("*.proto"))


def generate(target: Path) -> None:
    """Write the Python modules and their stubs for all sources into *target*."""
    # The generated tree is auditspan/v1/; the package is auditspan_proto/v1/ since `auditspan`
    # is the instrumentation's. No source imports another, so no import line needs changing.
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{ROOT}",
            f"--python_out={out}",
            f"--pyi_out={out}",
        ]
        subprocess.run([*command, *map(str, SOURCES)], check=True)
        target.mkdir(parents=True, exist_ok=True)
        for module in sorted((Path(out) / "auditspan" / "v1").iterdir()):
            (target / module.name).write_bytes(module.read_bytes())


if __name__ == "__main__":
    generate(ROOT / "src" / "auditspan_proto" / "v1")
    print(f"generated {len(SOURCES)} modules")
