"""The back office as a Django app, and where its models are."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig


class BackOffice(AppConfig):
    """The orders, as clerks see them."""

    name = "shop.backoffice"
    label = "shop"
    verbose_name = "Shop"


class OrdersElsewhere:
    """Orders are read from the database of the service that keeps them; everything else is our own."""

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return "orders" if model._meta.app_label == BackOffice.label else None  # noqa: SLF001 - Django documents it

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        del app_label
        return False if db == "orders" else None
