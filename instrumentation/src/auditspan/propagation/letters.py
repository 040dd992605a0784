"""Bytes as URL-safe base64 letters without padding (RFC 4648 section 5), as in a token's parts."""

from __future__ import annotations

import binascii
from typing import Final

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_", b"+/")


def to_letters(content: bytes) -> str:
    """*content* as letters, digits, ``-`` and ``_``."""
    return binascii.b2a_base64(content, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def from_letters(text: str) -> bytes:
    """The bytes that *text* stands for, of either alphabet and with or without padding. Raises ValueError."""
    letters = text.encode("ascii").rstrip(b"=").translate(_FROM_URL)
    return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4), strict_mode=True)
