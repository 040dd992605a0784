"""What clerks may do with orders: look at them, and give the money back."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.core.exceptions import PermissionDenied

from shop.backoffice import orders
from shop.backoffice.models import Order
from shop.backoffice.people import CLERK


class WithReason(ActionForm):
    """The bar above the list, where an action is chosen."""

    reason = forms.CharField(required=False, max_length=500)


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders change in their own service; here they are shown."""

    list_display = ("order_id", "customer", "item", "quantity", "amount_cents", "state")
    list_filter = ("state",)
    actions = ("refund",)
    action_form = WithReason

    def has_add_permission(self, request: Any) -> bool:
        del request
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:
        del request, obj
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:
        del request, obj
        return False

    @admin.action(description="Give the money back")
    def refund(self, request: Any, chosen: Any) -> None:
        if CLERK not in {group.name for group in request.user.groups.all()}:
            raise PermissionDenied("only clerks give money back")
        for order in chosen:
            try:
                orders.refund(order.order_id, request.POST.get("reason", ""))
            except orders.Refused as problem:
                self.message_user(request, f"{order}: {problem}", messages.ERROR)
            else:
                self.log_change(request, order, "gave the money back")
                self.message_user(request, f"{order}: the money goes back")
