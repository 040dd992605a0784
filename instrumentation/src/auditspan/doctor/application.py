"""Import an application as its server would, and keep it from serving.

Python servers listen through ``socket.listen``, which raises here; gRPC's servers are stand-ins that note what is
registered with them. So a module that starts its server when it is imported is found out, and no client is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import socket
import sys
from typing import TYPE_CHECKING, Any

from auditspan.doctor.report import WrongUse

if TYPE_CHECKING:
    from collections.abc import Iterator


class Serves(Exception):  # noqa: N818 - what the application does, not what failed
    """The application starts its server while it is imported."""


def load(name: str, *, factory: bool, folder: str) -> Any:
    """What ``module:attribute`` is (``app`` without an attribute), called when it is a *factory*.

    *folder* comes first on the path. Raises WrongUse when there is no such thing, Serves, and what the application
    itself raises.
    """
    module_name, _, path = name.partition(":")
    if not module_name:
        raise WrongUse(f"{name!r}: an application is written module:attribute, for instance shop.main:app")
    sys.path.insert(0, folder)
    with _kept_from_serving(), contextlib.redirect_stdout(sys.stderr):
        found = _import(module_name, folder)
        for part in (path or "app").split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise WrongUse(f"{name!r}: {module_name} has no {part!r}; name it module:attribute") from None
        return _made(found) if factory else found


def _import(name: str, folder: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name and (name == problem.name or name.startswith(f"{problem.name}.")):
            raise WrongUse(
                f"there is no module {problem.name!r} in {folder} or on the path; another place: --app-dir"
            ) from None
        raise


def _made(factory: Any) -> Any:
    """What *factory* makes; one with a parameter registers servicers with the gRPC server that it is given."""
    if not callable(factory):
        raise WrongUse(f"--factory: {factory!r} can't be called")
    required = [
        each
        for each in inspect.signature(factory).parameters.values()
        if each.default is each.empty and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) == 1 and importlib.util.find_spec("grpc") is not None:
        from auditspan.doctor.grpc_methods import Noted  # noqa: PLC0415 - needs grpc

        server = Noted()
        made = factory(server)
        return server if made is None else made
    made = factory()
    return asyncio.run(made) if inspect.iscoroutine(made) else made  # as aiohttp's own are


@contextlib.contextmanager
def _kept_from_serving() -> Iterator[None]:
    listen = socket.socket.listen

    def refuse(*_: object) -> None:
        raise Serves(
            "it starts a server when it is imported; put that behind `if __name__ == '__main__':`, or name a function "
            "that makes the application with --factory"
        )

    socket.socket.listen = refuse  # type: ignore[method-assign]
    try:
        with _grpc_servers():
            yield
    finally:
        socket.socket.listen = listen  # type: ignore[method-assign]


@contextlib.contextmanager
def _grpc_servers() -> Iterator[None]:
    if importlib.util.find_spec("grpc") is None:
        yield
        return
    from auditspan.doctor.grpc_methods import stand_in  # noqa: PLC0415 - needs grpc

    with stand_in():
        yield
