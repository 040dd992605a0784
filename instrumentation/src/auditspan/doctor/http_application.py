"""What the doctor knows of an application that answers HTTP, whatever it is written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ANY: Final = "ANY"  # method of what answers any, or can't be asked
WEBSOCKET: Final = "WEBSOCKET"
DEPTH: Final = 20  # of wrappers and mounts


@dataclass(frozen=True, slots=True)
class HttpApplication:
    """*routes* are pairs of method and full route, as the framework writes it.

    *instrumented*: requests make entry spans. *hooked*: those tell us who acts. *excluded* is OpenTelemetry's list of
    URLs without a span, or None, and *setting* the variable that it is read from. *wrapped* names what stands around
    the instrumentation, outermost first. *any_is* says what a route is whose method is ANY.
    """

    framework: str
    routes: tuple[tuple[str, str], ...]
    instrumented: bool
    hooked: bool
    excluded: Any
    wrapped: tuple[str, ...] = ()
    setting: str = ""
    any_is: str = "a mounted application"


def is_a(thing: Any, module: str, name: str) -> bool:
    """Whether *thing* is of the class, or one that is made of it. By name: the instrumentations replace the modules' own."""
    return any(kind.__module__ == module and kind.__name__ == name for kind in type(thing).__mro__)


def shown(methods: Iterable[str]) -> list[str]:
    """Without those that a framework adds to each route."""
    found = set(methods)
    return sorted(found - {"OPTIONS"} - ({"HEAD"} if "GET" in found else set())) or sorted(found)
