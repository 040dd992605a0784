"""`auditspan` with its compiled path switched off, so that both can be measured in one installation.

    python -m bench.collector.interpreted collect --config FILE

Only here, since nobody who runs a collector wants it: the choice is the installation's, not a setting's.
"""

from __future__ import annotations

import importlib.util
from importlib import import_module
from typing import Final

_COMPILED: Final = "auditspan_collector.transcode"
_CHOICE: Final = "auditspan_collector.pipeline.encode"


def differs() -> bool:
    """Whether there is a compiled path to switch off."""
    found = importlib.util.find_spec(_COMPILED)
    return found is not None and not str(found.origin).endswith(".py")


def main() -> None:
    """Run the command line."""
    import_module(_CHOICE).COMPILED = False  # type: ignore[attr-defined]
    import_module("auditspan_collector.cli").main()


if __name__ == "__main__":
    main()
