"""Ask billing for money, or for giving it back, and say in the shop's own errors how that went."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from shop.billing.v1 import billing_pb2 as pb
from shop.billing.v1 import billing_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shop.service_token import ServiceToken

TIMEOUT_S = 3.0  # a call


class BillingFailed(Exception):  # noqa: N818 - a state
    """Billing did not answer, or not as it should; nobody knows whether it did what was asked."""


class AlreadyRefunded(Exception):  # noqa: N818 - a state
    """The money went back before."""


class BillingClient:
    """One channel to billing, shared by all threads."""

    def __init__(self, target: str, token: ServiceToken) -> None:
        self._stub = billing_pb2_grpc.BillingStub(grpc.insecure_channel(target))  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", token.authorization),)

    def charge(self, order_id: int, customer: str, amount_cents: int) -> pb.Invoice:
        """The invoice. Raises BillingFailed."""
        request = pb.ChargeRequest(order_id=str(order_id), customer=customer, amount_cents=amount_cents)
        with _in_the_shops_words():
            invoice: pb.Invoice = self._stub.Charge(request, timeout=TIMEOUT_S, metadata=self._metadata)
            return invoice

    def refund(self, invoice_id: str, reason: str) -> pb.Invoice:
        """The refunded invoice. Raises AlreadyRefunded or BillingFailed."""
        request = pb.RefundRequest(invoice_id=invoice_id, reason=reason)
        with _in_the_shops_words():
            invoice: pb.Invoice = self._stub.Refund(request, timeout=TIMEOUT_S, metadata=self._metadata)
            return invoice


@contextmanager
def _in_the_shops_words() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as problem:
        before = problem.code() is grpc.StatusCode.FAILED_PRECONDITION
        kind = AlreadyRefunded if before else BillingFailed
        raise kind(f"{problem.code().name}: {problem.details()}") from problem
