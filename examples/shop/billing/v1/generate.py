"""Generate billing_pb2.py, its stub and billing_pb2_grpc.py from billing.proto; a test runs this and compares.

.venv/bin/python examples/shop/billing/v1/generate.py
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("billing.proto")
ROOT = SOURCE.parents[3]  # the folder that holds the package `shop`; the generated imports start there


def generate(target: Path) -> None:
    """Write the modules into *target*, in the folders of their package: shop/billing/v1/."""
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outputs, str(SOURCE)],
        check=True,
    )


if __name__ == "__main__":
    generate(ROOT)
    print("generated shop.billing.v1")
