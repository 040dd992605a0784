"""Tokens, as an issuer elsewhere signs them. The keys are known here, so that tests may sign, too."""

import time

import jwt

SECRET = "a secret of thirty-two bytes or more"
CLAIMS = {
    "iss": "https://issuer.test",
    "aud": "shop",
    "client_id": "web",
    "iat": 1,
    "jti": "1",
    "auth_time": 1,
    "sub": "alice",
    "scope": "orders:read orders:write",
    "groups": ["sales"],
    "sid": "a-session-of-the-issuer",
}


def token(*, key=SECRET, algorithm="HS256", **changes):
    claims = CLAIMS | {"exp": int(time.time()) + 600} | changes
    claims = {name: claim for name, claim in claims.items() if claim is not None}
    headers = {"typ": "at+jwt"}
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)
