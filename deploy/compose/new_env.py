"""Draw every secret of .env.example and write .env beside it, readable by its owner only; never overwrites one.

python3 deploy/compose/new_env.py
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

EXAMPLE = Path(__file__).with_name(".env.example")


# A key of audit-context has an id before its secret (docs/audit-context.md).
PREFIXES = {"AUDIT_CONTEXT_KEYS=": "first "}


def filled(example: str) -> str:
    """*example* with 32 random bytes, in hex, after each empty ``NAME=``."""
    return "".join(
        f'{line}"{PREFIXES.get(line, "")}{secrets.token_hex(32)}"\n' if line.endswith("=") else f"{line}\n"
        for line in example.splitlines()
    )


def main(target: Path) -> int:
    """The exit status."""
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{target} is there already. To draw new secrets, delete it first.", file=sys.stderr)
        return 1
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(filled(EXAMPLE.read_text(encoding="utf-8")))
    print(f"{target}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLE.with_name(".env")))
