from collections.abc import Callable
from typing import Any

def gate(
    constants: tuple[Any, ...], /
) -> tuple[Callable[..., None], Callable[..., None], Callable[..., bool]]: ...
