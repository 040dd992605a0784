"""Run a request through the readable path and through both forms of the hot path, and say how they differ."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

import auditspan_collector
from auditspan_collector import transcode
from auditspan_collector.errors import AuditspanError, InvalidRequest
from auditspan_collector.pipeline import readable
from auditspan_collector.pipeline.encode import Encoder
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender, sequence_key
from auditspan_collector.schema import received_column

if TYPE_CHECKING:
    from types import ModuleType

RECEIVED_UNIX_NS = 1_790_000_000_123_456_789
INSTRUMENTED = Sender("instrumented", tenant="default", services=None, instrumented=True)
FOREIGN = Sender("foreign", tenant="einzelhandel ä", services=("orders", "bill*"), instrumented=False)
SENDERS = (INSTRUMENTED, FOREIGN)
LIMITS = (
    Limits(),
    Limits(attributes_per_span=16, value_bytes=64),
    Limits(value_bytes=64, events_per_span=1, links_per_span=1, spans_per_request=4),
)


def interpreted(module: str = "transcode") -> ModuleType:
    """The source of a compiled module as it stands, beside the compiled one."""
    name = f"auditspan_collector_{module}_interpreted"
    if name not in sys.modules:
        path = Path(auditspan_collector.__path__[0]) / f"{module}.py"
        spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def forms() -> dict[str, ModuleType]:
    """The hot path in each form that there is here."""
    compiled = {"compiled": transcode} if transcode.COMPILED else {}
    return {"interpreted": interpreted()} | compiled


class Paths:
    """The readable path and each form of the hot path, under the same limits."""

    def __init__(self, limits: Limits = LIMITS[0]) -> None:
        self.limits = limits
        self.encoders = {form: Encoder(limits, module.Transcoder) for form, module in forms().items()}

    def verdicts(self, body: bytes, sender: Sender = INSTRUMENTED) -> dict[str, object]:
        """What each path says of a request: its Selection, or its error with all that a client sees of it."""
        request = OtlpRequest(body, "protobuf", sender, "127.0.0.1", RECEIVED_UNIX_NS)
        said = {"readable": verdict(lambda one: readable.encode(one, self.limits), request)}
        return said | {form: verdict(encoder, request) for form, encoder in self.encoders.items()}

    def differ(self, body: bytes, sender: Sender = INSTRUMENTED) -> str:
        """How the paths differ on a request; empty when they agree."""
        said = self.verdicts(body, sender)
        wanted = said.pop("readable")
        return "; ".join(f"{form}: {got!r}, not {wanted!r}" for form, got in said.items() if got != wanted)


def verdict(encode, request: OtlpRequest) -> object:
    try:
        return encode(request)
    except InvalidRequest as error:
        return ("InvalidRequest", error.problem, error.offset, error.field)
    except AuditspanError as error:
        return (type(error).__name__, str(error))


def taken(body: bytes, module: ModuleType, sender: Sender = INSTRUMENTED, limits: Limits = LIMITS[0]):
    """What the hot path itself makes of a request, before the readable one helps; None when it gives it up."""
    encoder = Encoder(limits, module.Transcoder)
    return encoder.transcoder().run(
        body, sender.tenant, received_column(0), partial(sequence_key, ""), instrumented=sender.instrumented
    )
