"""Say who works here: Django's own passwords and sessions, and people with their groups."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend


class WithGroups(ModelBackend):
    """Loads the groups with the user: they decide what each may do, so every page asks for them."""

    def get_user(self, user_id: int) -> Any:
        user = get_user_model().objects.prefetch_related("groups").filter(pk=user_id).first()
        return user if user is not None and self.user_can_authenticate(user) else None
