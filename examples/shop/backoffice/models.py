"""The orders, in the table that the service of that name keeps."""

from django.db import models


class Order(models.Model):
    order_id = models.BigIntegerField(primary_key=True)
    customer = models.TextField()
    item = models.TextField()
    quantity = models.IntegerField()
    amount_cents = models.IntegerField()
    invoice_id = models.TextField()
    state = models.TextField()

    class Meta:
        managed = False
        db_table = "orders"
        ordering = ("-order_id",)

    def __str__(self) -> str:
        return f"order {self.order_id}"
