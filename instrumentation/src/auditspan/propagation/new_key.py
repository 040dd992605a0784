"""Write a new key for the keys file: ``python -m auditspan.propagation.new_key KEY_ID [--ed25519]``."""

from __future__ import annotations

import argparse
import secrets
import sys

from auditspan.propagation.keys import KeyRing, KeysError
from auditspan.propagation.letters import to_letters


def lines(key_id: str, *, ed25519: bool) -> list[str]:
    """One line with a secret; with *ed25519* one with the private key and one with the public key.

    Raises KeysError for a key id that can't be one, ImportError without cryptography.
    """
    private = secrets.token_bytes(32)
    if not ed25519:
        made = [f"{key_id} {to_letters(private)}"]
    else:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - an extra
            Ed25519PrivateKey,
        )

        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        made = [f"{key_id} ed25519 {to_letters(private)}", f"{key_id} ed25519-public {to_letters(public)}"]
    KeyRing.from_text(made[0])
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command; its output is a secret, so send it to a file that only its owner can read."""
    parser = argparse.ArgumentParser(
        prog="python -m auditspan.propagation.new_key",
        description="Writes a line for the keys file of audit-context. With --ed25519 two: the first for the service "
        "that signs, the second for those that verify.",
    )
    parser.add_argument("key_id", help="1 to 32 letters, digits, _ or -; for instance the month: 2026-11")
    parser.add_argument("--ed25519", action="store_true", help="needs auditspan[ed25519]")
    chosen = parser.parse_args(arguments)
    try:
        made = lines(chosen.key_id, ed25519=chosen.ed25519)
    except ImportError:
        parser.error("--ed25519 needs the package cryptography: pip install 'auditspan[ed25519]'")
    except KeysError as problem:
        parser.error(str(problem))
    sys.stdout.write("\n".join(made) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
