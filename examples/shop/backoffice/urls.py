"""The admin site at the root, with its style sheets: a clerk or two need no web server for these."""

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.http import HttpRequest, JsonResponse
from django.urls import path

admin.site.site_header = admin.site.site_title = "Back office"


def health(_: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


urlpatterns = [
    path("health", health),
    path("static/<path:path>", serve, {"insecure": True}),
    path("", admin.site.urls),
]
