"""What a project adds: who was seen when, and users who come with their groups in one more query."""

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend


def last_seen(get_response):
    def middleware(request):
        request.seen = not request.path.startswith("/quiet") and request.user.is_authenticated
        return get_response(request)

    return middleware


class WithGroups(ModelBackend):
    def get_user(self, user_id):
        return get_user_model().objects.prefetch_related("groups").filter(pk=user_id).first()
