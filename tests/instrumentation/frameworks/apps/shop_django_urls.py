"""What the Django shop answers."""

import asyncio
import functools
import io
import json
import os
import time

from django.contrib import admin, auth
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView, LogoutView
from django.core.exceptions import PermissionDenied
from django.db.backends.signals import connection_created
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods
from shop import call_itself, in_the_background, notify, pieces, say, steps

queries = []


def count(execute, sql, *args):
    queries.append(sql)
    return execute(sql, *args)


def watch(connection, **_):
    connection.execute_wrappers.append(count)


connection_created.connect(watch)


def done(request, **_):
    return JsonResponse({})


def for_admins(view):
    @functools.wraps(view)
    def guarded(request, **arguments):
        if not request.user.groups.filter(name="admin").exists():
            raise PermissionDenied
        return view(request, **arguments)

    return guarded


@require_http_methods(["POST"])
def create(request):
    if not json.loads(request.body).get("product"):
        return HttpResponse(status=422)
    return JsonResponse({})


@require_http_methods(["GET", "PUT", "DELETE"])
def order(request, order_id):
    if request.method == "DELETE":
        return for_admins(done)(request)
    if request.method == "PUT" and not request.user.is_authenticated:
        return HttpResponse(status=401)
    return JsonResponse({})


def missing(request, order_id):
    raise Http404


def crash(request, order_id):
    raise RuntimeError("out of luck")


def stream(request, kind):
    return StreamingHttpResponse(pieces(kind))


async def astream(request, kind):
    async def later():
        for piece in pieces(kind):
            await asyncio.sleep(0)
            yield piece

    return StreamingHttpResponse(later())


async def cancelled(request):
    raise asyncio.CancelledError


async def mixed(request, name):
    await asyncio.sleep(int(request.GET["ms"]) / 1000)
    await asyncio.to_thread(say, name)
    return JsonResponse({})


def calls_itself(request, depth):
    call_itself(depth)
    return JsonResponse({})


def in_steps(request):
    steps()
    return JsonResponse({})


def background(request):
    in_the_background(notify)
    return JsonResponse({})


async def asynchronous(request):
    user = await request.auser()
    return JsonResponse({"user": user.get_username()})


def download(request):
    return FileResponse(io.BytesIO(b"0123456789"), filename="numbers.txt")


def how_many_queries(request):
    return JsonResponse({"queries": len(queries)})


def register(request):
    return redirect("/enter")


began = {"slow": False, "waiting": False}


def what_began(request):
    return JsonResponse(began)


def slow(request):
    began["slow"] = True
    time.sleep(0.2)
    return JsonResponse({})


async def waiting(request):
    began["waiting"] = True
    await asyncio.sleep(60)


def refuse_password(request):
    auth.authenticate(request, username=request.user.get_username(), password="wrong")
    return JsonResponse({})


def excluded_login(request):
    user = auth.authenticate(request, username="bob", password="bob-password")
    auth.login(request, user)
    return JsonResponse({})


back_office = [path("users/<name>/role", for_admins(done))]
customers = [path("customers/<customer_id>", done)]
urlpatterns = [
    path("orders", create),
    path("orders/<int:order_id>", order),
    path("orders/<int:order_id>/refund", done),
    path("orders/<int:order_id>/missing", missing),
    path("orders/<int:order_id>/crash", crash),
    path("reports/<report_id>", done),
    path("secrets/<name>", for_admins(done)),
    path("streams/<kind>", astream if "SHOP_ASYNC" in os.environ else stream),
    path("cancelled", cancelled),
    path("mixed/<name>", mixed),
    path("calls-itself/<int:depth>", csrf_exempt(calls_itself)),
    path("steps", in_steps),
    path("background", background),
    path("excluded", done),
    path("shop/", include(customers)),
    path("admin/<region>/", include(back_office)),
    # What only Django has:
    path("excluded/login", excluded_login),
    path("enter", LoginView.as_view()),
    path("leave", LogoutView.as_view()),
    path("account", login_required(done)),
    path("register", register),
    path("refuse-password", refuse_password),
    path("asynchronous", asynchronous),
    path("download", download),
    path("quiet/plain", done),
    path("quiet/asynchronous", asynchronous),
    path("quiet/queries", how_many_queries),
    path("quiet/began", what_began),
    path("slow", slow),
    path("waiting", waiting),
    re_path(r"^old/(?P<shelf>[a-z]+)/(?P<item_id>[0-9]{1,4})/move/?$", done),
    path("back-office/", admin.site.urls),
]
