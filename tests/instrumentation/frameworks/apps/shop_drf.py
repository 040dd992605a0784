"""The shop with Django REST framework: authenticated by JSON Web Tokens, tokens, HTTP or sessions."""

import time

from django.contrib.auth.views import LoginView
from django.http import StreamingHttpResponse
from django.urls import include, path
from rest_framework import routers, serializers
from rest_framework.authtoken.views import obtain_auth_token
from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import NotFound
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet
from rest_framework_simplejwt.serializers import TokenObtainPairSerializer
from rest_framework_simplejwt.views import TokenObtainPairView
from shop import ROLES, call_itself, in_the_background, notify, pieces, say, steps


class WithRoles(TokenObtainPairSerializer):
    @classmethod
    def get_token(cls, user):
        token = super().get_token(user)
        token["roles"] = ROLES[user.username]
        return token


class Tokens(TokenObtainPairView):
    serializer_class = WithRoles


class IsAdmin(BasePermission):
    def has_permission(self, request, view):
        return request.user.groups.filter(name="admin").exists()


class Order(serializers.Serializer):
    product = serializers.CharField()


class Orders(ViewSet):
    lookup_url_kwarg = "order_id"

    def get_permissions(self):
        return [{"update": IsAuthenticated, "destroy": IsAdmin}.get(self.action, BasePermission)()]

    def create(self, request):
        Order(data=request.data).is_valid(raise_exception=True)
        return Response({})

    def retrieve(self, request, order_id):
        return Response({})

    update = destroy = retrieve


@api_view(["GET", "POST", "PUT"])
def done(request, **_):
    return Response({})


@api_view(["GET", "PUT"])
@permission_classes([IsAdmin])
def for_admins(request, **_):
    return Response({})


@api_view(["POST"])
def missing(request, order_id):
    raise NotFound


@api_view(["POST"])
def crash(request, order_id):
    raise RuntimeError("out of luck")


@api_view(["POST"])
def stream(request, kind):
    return StreamingHttpResponse(pieces(kind))


@api_view(["POST"])
def mixed(request, name):
    time.sleep(int(request.query_params["ms"]) / 1000)
    say(name)
    return Response({})


@api_view(["POST"])
def calls_itself(request, depth):
    call_itself(depth)
    return Response({})


@api_view(["POST"])
def in_steps(request):
    steps()
    return Response({})


@api_view(["POST"])
def background(request):
    in_the_background(notify)
    return Response({})


@api_view(["POST"])
def excluded(request):
    return Response({})


router = routers.SimpleRouter(trailing_slash=False)
router.register("orders", Orders, basename="order")
back_office = [path("users/<name>/role", for_admins)]
urlpatterns = [
    *router.urls,
    path("orders/<int:order_id>/refund", done),
    path("orders/<int:order_id>/missing", missing),
    path("orders/<int:order_id>/crash", crash),
    path("reports/<report_id>", done),
    path("secrets/<name>", for_admins),
    path("streams/<kind>", stream),
    path("mixed/<name>", mixed),
    path("calls-itself/<int:depth>", calls_itself),
    path("steps", in_steps),
    path("background", background),
    path("excluded", excluded),
    path("shop/", include([path("customers/<customer_id>", done)])),
    path("admin/<region>/", include(back_office)),
    path("token", Tokens.as_view()),
    path("keys", obtain_auth_token),
    path("enter", LoginView.as_view()),
]
