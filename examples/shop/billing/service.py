"""Answer billing's gRPC calls: check what was asked, do it, say in gRPC's status codes why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from shop.billing.invoices import AlreadyRefunded, NoSuchInvoice
from shop.billing.v1 import billing_pb2 as pb
from shop.billing.v1 import billing_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from shop.billing.invoices import Invoices, StoredInvoice
    from shop.service_token import ServiceToken

    Handler = grpc.RpcMethodHandler[Any, Any]

_OPEN_TO_ALL = "/grpc.health.v1.Health/"  # a health check carries no token


class Billing(billing_pb2_grpc.BillingServicer):
    """shop.billing.v1.Billing, as billing.proto describes it."""

    def __init__(self, invoices: Invoices) -> None:
        self._invoices = invoices

    def Charge(self, request: pb.ChargeRequest, context: grpc.ServicerContext) -> pb.Invoice:  # noqa: N802
        if not request.order_id or not request.customer or request.amount_cents <= 0:
            _abort(
                context, grpc.StatusCode.INVALID_ARGUMENT, "a charge needs an order, a customer and an amount"
            )
        return _message(self._invoices.charge(request.order_id, request.customer, request.amount_cents))

    def Refund(self, request: pb.RefundRequest, context: grpc.ServicerContext) -> pb.Invoice:  # noqa: N802
        try:
            return _message(self._invoices.refund(request.invoice_id, request.reason))
        except NoSuchInvoice:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"no invoice {request.invoice_id}")
        except AlreadyRefunded:
            _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"invoice {request.invoice_id} was refunded before",
            )

    def GetInvoice(self, request: pb.GetInvoiceRequest, context: grpc.ServicerContext) -> pb.Invoice:  # noqa: N802
        try:
            return _message(self._invoices.get(request.invoice_id))
        except NoSuchInvoice:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"no invoice {request.invoice_id}")


class OnlyTheShop(grpc.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Refuses callers that don't have the shop's token."""

    def __init__(self, token: ServiceToken) -> None:
        self._token = token
        self._refuse = grpc.unary_unary_rpc_method_handler(
            lambda _, context: _abort(
                context, grpc.StatusCode.UNAUTHENTICATED, "the caller is not of this shop"
            ),
        )

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        if handler_call_details.method.startswith(_OPEN_TO_ALL):
            return continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata)
        if self._token.accepts(str(metadata.get("authorization", ""))):
            return continuation(handler_call_details)
        return self._refuse


def _message(invoice: StoredInvoice) -> pb.Invoice:
    state = pb.INVOICE_STATE_REFUNDED if invoice.refunded else pb.INVOICE_STATE_PAID
    return pb.Invoice(
        invoice_id=invoice.invoice_id,
        order_id=invoice.order_id,
        customer=invoice.customer,
        amount_cents=invoice.amount_cents,
        state=state,
        refund_reason=invoice.refund_reason,
    )


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
    raise AssertionError("abort always raises")
