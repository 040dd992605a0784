from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InvoiceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INVOICE_STATE_UNSPECIFIED: _ClassVar[InvoiceState]
    INVOICE_STATE_PAID: _ClassVar[InvoiceState]
    INVOICE_STATE_REFUNDED: _ClassVar[InvoiceState]
INVOICE_STATE_UNSPECIFIED: InvoiceState
INVOICE_STATE_PAID: InvoiceState
INVOICE_STATE_REFUNDED: InvoiceState

class Invoice(_message.Message):
    __slots__ = ("invoice_id", "order_id", "customer", "amount_cents", "state", "refund_reason")
    INVOICE_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_CENTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REFUND_REASON_FIELD_NUMBER: _ClassVar[int]
    invoice_id: str
    order_id: str
    customer: str
    amount_cents: int
    state: InvoiceState
    refund_reason: str
    def __init__(self, invoice_id: _Optional[str] = ..., order_id: _Optional[str] = ..., customer: _Optional[str] = ..., amount_cents: _Optional[int] = ..., state: _Optional[_Union[InvoiceState, str]] = ..., refund_reason: _Optional[str] = ...) -> None: ...

class ChargeRequest(_message.Message):
    __slots__ = ("order_id", "customer", "amount_cents")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_CENTS_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    customer: str
    amount_cents: int
    def __init__(self, order_id: _Optional[str] = ..., customer: _Optional[str] = ..., amount_cents: _Optional[int] = ...) -> None: ...

class RefundRequest(_message.Message):
    __slots__ = ("invoice_id", "reason")
    INVOICE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    invoice_id: str
    reason: str
    def __init__(self, invoice_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GetInvoiceRequest(_message.Message):
    __slots__ = ("invoice_id",)
    INVOICE_ID_FIELD_NUMBER: _ClassVar[int]
    invoice_id: str
    def __init__(self, invoice_id: _Optional[str] = ...) -> None: ...
