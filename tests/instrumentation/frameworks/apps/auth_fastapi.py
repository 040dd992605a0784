"""Bearer authentication in dependencies, which is FastAPI's own way. Nothing here knows Auditspan, but for one route."""

from typing import Annotated

import auditspan
import jwt
from auth_tokens import SECRET
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from joserfc import jwt as jose
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

app = FastAPI()
Token = Annotated[str, Depends(OAuth2PasswordBearer("/token"))]
OptionalToken = Annotated[str | None, Depends(OAuth2PasswordBearer("/token", auto_error=False))]
KEY = OctKey.import_key(SECRET)
CLAIMS = jose.JWTClaimsRegistry(aud={"essential": True, "value": "shop"})


def by_pyjwt(token: Token):
    try:
        return jwt.decode(token, SECRET, algorithms=["HS256"], audience="shop")
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None


async def by_joserfc(token: Token):
    try:
        found = jose.decode(token, KEY, algorithms=["HS256"])
        CLAIMS.validate(found.claims)
    except JoseError:
        raise HTTPException(401) from None
    return found.claims


def scoped(claims: Annotated[dict, Depends(by_pyjwt)]):
    if "orders:delete" not in claims["scope"].split():
        raise HTTPException(403)


def revoked(claims: Annotated[dict, Depends(by_pyjwt)]):
    raise HTTPException(401)


def read_only(token: Token):
    return jwt.decode(token, options={"verify_signature": False})


def unsigned(token: Token):
    return jose.decode(token, KEY, algorithms=["none"])


def if_there_is_one(token: OptionalToken):
    try:
        return jwt.decode(token or "", SECRET, algorithms=["HS256"], audience="shop")
    except jwt.InvalidTokenError:
        return None


def of_the_query(invitation: str):
    return jwt.decode(invitation, SECRET, algorithms=["HS256"], audience="shop")


def says_more(claims: Annotated[dict, Depends(by_pyjwt)]):
    auditspan.set_actor("carol", roles=["support"], delegate=claims["sub"])


def done(order_id: int):
    return {}


for name, dependency in {
    "pyjwt": by_pyjwt,
    "joserfc": by_joserfc,
    "scoped": scoped,
    "revoked": revoked,
    "read-only": read_only,
    "unsigned": unsigned,
    "optional": if_there_is_one,
    "query": of_the_query,
    "set-actor": says_more,
}.items():
    app.add_api_route(f"/{name}/{{order_id}}", done, methods=["PUT"], dependencies=[Depends(dependency)])
