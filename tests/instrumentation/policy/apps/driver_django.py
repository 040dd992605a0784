"""A Django service in one file, whose mapper changes the groups of its users; the database is sqlite3's."""

import contextlib
import os

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for tests only",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[f"{__name__}.known"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["DATABASE"],
            "OPTIONS": {"timeout": 60},
        }
    },
    LOGGING_CONFIG=None,
)
django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402 - when there are settings
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402 - as above
from django.core.management import call_command  # noqa: E402 - as above
from django.core.wsgi import get_wsgi_application  # noqa: E402 - as above
from django.db import IntegrityError, transaction  # noqa: E402 - as above
from django.http import JsonResponse  # noqa: E402 - as above
from django.urls import path  # noqa: E402 - as above
from werkzeug.serving import run_simple  # noqa: E402 - as above


def known(get_response):
    def answer(request):
        request.user = User(username=request.headers["X-User"])
        return get_response(request)

    return answer


def group(request, name):
    if request.method == "POST":
        Group.objects.create(name=name)
    elif request.method == "PUT":
        Group.objects.filter(name=name).update(name=f"{name}-changed")
    else:
        Group.objects.get(name=name).delete()
    return JsonResponse({})


def save(request, name):
    there = Group.objects.get(name=name)
    there.name = f"{name}-saved"
    there.save()
    return JsonResponse({"id": there.pk})


def many(request, name):
    Group.objects.bulk_create(Group(name=f"{name}-{number}") for number in range(120))
    return JsonResponse({})


@transaction.atomic
def nested(request, name):
    Group.objects.create(name=name)
    with contextlib.suppress(IntegrityError), transaction.atomic():
        Group.objects.create(name=f"{name}-inner")
        Group.objects.create(name=f"{name}-inner")
    return JsonResponse({})


@transaction.atomic
def rolled_back(request, name):
    Group.objects.create(name=name)
    transaction.set_rollback(True)
    return JsonResponse({})


def visit(request, name):
    session = SessionStore()
    session["page"] = name
    session.create()
    key = session.session_key
    session.flush()
    return JsonResponse({"key": key})


urlpatterns = [
    path("visits/<name>", visit),
    path("groups/<name>", group),
    path("saved/<name>", save),
    path("many/<name>", many),
    path("nested/<name>", nested),
    path("rolled-back/<name>", rolled_back),
]

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    run_simple("127.0.0.1", int(os.environ["PORT"]), get_wsgi_application(), threaded=True)
