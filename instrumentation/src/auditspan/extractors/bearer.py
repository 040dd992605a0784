"""Whom a bearer token names that the application itself has verified, with PyJWT, joserfc or Authlib.

FastAPI's dependencies and many decorators authenticate by a JSON Web Token and tell no framework whom they found. What
they call, though, knows: the library that checks the signature. So listen there. No token is ever decoded here, and
none is read that the library was told not to verify; what counts is only the token that came in the ``Authorization``
header of the very request that is being answered, signed, not expired, and only if the application then does not
answer 401. Whom the framework or ``set_actor()`` names comes first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import wrapt

from auditspan import context
from auditspan.context import Actor
from auditspan.extractors import first_text, guard, hash_session, text, texts

if TYPE_CHECKING:
    from collections.abc import Callable

INSTRUMENTORS: Final = ()
TESTED: Final = {"PyJWT": ("2", "2"), "joserfc": ("1", "1"), "Authlib": ("1", "1")}

FRAMEWORKS: Final[dict[str, dict[str, str]]] = {}  # it works inside others' frameworks

# RFC 9068 sections 2.2.3 and 2.2.3.1, and what common issuers write: Azure AD's scp, Auth0's permissions.
_ROLES: Final = ("roles", "groups", "scope", "scopes", "scp", "permissions")
_GRACE_S: Final = 60  # clocks differ, and applications allow for it


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave the arguments as they are: there is no instrumentor."""
    del instrumentor
    return arguments


def start() -> None:
    """Listen to each library once the application imports it."""
    wrapt.when_imported("jwt.api_jwt")(_wrapper("PyJWT.decode_complete", _pyjwt))
    wrapt.when_imported("joserfc.jwt")(_wrapper("decode", _joserfc))
    wrapt.when_imported("authlib.jose.rfc7519.jwt")(_wrapper("JsonWebToken.decode", _authlib_jose))
    wrapt.when_imported("authlib.oauth2.rfc6749.resource_protector")(
        _wrapper("ResourceProtector.validate_request", _protected)
    )


def _wrapper(name: str, told: Callable[..., None]) -> Callable[[Any], None]:
    """What wraps *name* in a module, so that *told* hears of each call that has succeeded."""
    guarded = guard(told)

    def call(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = wrapped(*args, **kwargs)
        guarded(found, instance, args, kwargs)
        return found

    def wrap(module: Any) -> None:
        wrapt.wrap_function_wrapper(module, name, call)

    return wrap


def _pyjwt(found: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    options = kwargs.get("options", args[3] if len(args) > 3 else None)
    told = [
        getattr(instance, "options", None) or {},
        options or {},
        {"verify_signature": kwargs.get("verify")},
    ]
    if any(each.get("verify_signature") is False for each in told):
        return
    _signed(args[0] if args else kwargs.get("jwt"), found["header"], found["payload"])


def _joserfc(found: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _signed(args[0] if args else kwargs.get("value"), found.header, found.claims)


def _authlib_jose(found: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    _signed(args[0] if args else kwargs.get("s"), found.header, found)


def _signed(token: Any, header: Any, claims: Any) -> None:
    """*token* with these *claims* has been verified; an encrypted one is not signed, and anybody may sign with none."""
    token = token.decode("ascii", "replace") if isinstance(token, bytes) else str(token)
    if token.count(".") != 2 or str(header.get("alg", "none")).lower() == "none":
        return
    state = _request_with(token)
    if state is not None and isinstance(claims, Mapping) and not _expired(claims):
        state.verified = _named(claims)


def _protected(found: Any, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Authlib has found *found*, which is claims or an object of the application's, by the request's own token."""
    request: Any = kwargs["request"] if "request" in kwargs else args[1]
    token = str(request.headers.get("Authorization", "")).partition(" ")[2].strip()
    state = _request_with(token) if token else None
    if state is None or isinstance(found, Mapping):
        return  # of claims the library that verified them has told
    stored = getattr(found, "__dict__", {})  # an attribute that is not loaded could ask the database
    identity = first_text(stored, ("user_id", "username", "sub"))
    service = "" if identity else text(stored.get("client_id"))
    if identity or service:
        state.verified = Actor(
            identity or service,
            type="service" if service else "user",
            roles=texts(stored.get("scope") or ()),
            auth_method="bearer",
        )


def _request_with(token: str) -> context.AuditedSpan | None:
    """The request that is being answered, when *token* is its own credential.

    Only one that is answered with a status of HTTP's, which says whether the token was believed.
    """
    state = context.current()
    state = state.root() if state is not None else None
    source: Any = state.source if state is not None else None
    if not hasattr(source, "header") or not hasattr(source, "status"):
        return None
    sent = (value.partition(" ")[2].strip() for value in source.header("authorization"))
    return state if token in sent else None


def _expired(claims: Mapping[str, Any]) -> bool:
    """Whether the token is past its time; some libraries leave that to a second call, whose answer is not known here."""
    expires = claims.get("exp")
    return isinstance(expires, (int, float)) and expires < time.time() - _GRACE_S


def _named(claims: Mapping[str, Any]) -> Actor | None:
    """The subject, with what the issuer lets it do; RFC 9068 section 2.2: a client's own token is about the client."""
    identity = first_text(claims, ("sub", "username", "preferred_username", "client_id"))
    if not identity:
        return None
    found = [role for name in _ROLES if (said := claims.get(name)) for role in texts(said)]
    realm = claims.get("realm_access")  # Keycloak's
    if isinstance(realm, Mapping):
        found += texts(realm.get("roles") or ())
    service = identity in (text(claims.get("client_id")), text(claims.get("azp")))
    return Actor(
        identity,
        type="service" if service else "user",
        roles=texts(tuple(found)),
        session=hash_session(text(claims.get("sid"))),
        auth_method="bearer",
    )
