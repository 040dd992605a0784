"""Flask-Login's sessions, PyJWT in a decorator, and Authlib's protectors. Nothing here knows Auditspan."""

import functools
import os
from types import SimpleNamespace

import flask_login
import jwt
from auth_tokens import SECRET
from authlib.integrations.flask_oauth2 import ResourceProtector
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from flask import Flask, abort, request
from joserfc.jwk import KeySet, OctKey

app = Flask(__name__)
app.secret_key = "for tests only"
sessions = flask_login.LoginManager(app)
sessions.login_view = "login"


class User(flask_login.UserMixin):
    roles = ("sales", "admin")

    def __init__(self, name):
        self.id = name


@sessions.user_loader
def load(name):
    return User(name)


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.form.get("password") != f"{request.form.get('name')}-password":
        abort(401)
    flask_login.login_user(User(request.form["name"]))
    return {}


@app.post("/logout")
@flask_login.login_required
def logout():
    flask_login.logout_user()
    return {}


@app.put("/sessions/<int:order_id>")
@flask_login.login_required
def with_a_session(order_id):
    return {}


@app.put("/unasked/<int:order_id>")
def without_a_look_at_the_user(order_id):
    return {}


def bearer(view):
    @functools.wraps(view)
    def guarded(**arguments):
        try:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            jwt.decode(token, SECRET, algorithms=["HS256"], audience="shop")
        except jwt.InvalidTokenError:
            abort(401)
        return view(**arguments)

    return guarded


@app.put("/pyjwt/<int:order_id>")
@bearer
def with_pyjwt(order_id):
    return {}


class Keys(JWTBearerTokenValidator):
    def get_jwks(self):
        return KeySet([OctKey.import_key(SECRET)])


class Stored(SimpleNamespace):
    """As an application's model of tokens."""

    def is_expired(self):
        return False

    is_revoked = is_expired

    def get_scope(self):
        return self.scope


class Opaque(BearerTokenValidator):
    """Tokens that say nothing, and are looked up."""

    def authenticate_token(self, token_string):
        stored = {
            "opaque-of-bob": Stored(id=17, user_id="bob", client_id="web", scope="orders:write"),
            "opaque-of-the-till": Stored(id=18, user_id=None, client_id="till", scope="orders:write"),
        }
        return stored.get(token_string)


def protected(validator):
    protector = ResourceProtector()
    protector.register_token_validator(validator)
    return protector


signed = protected(Keys(issuer="https://issuer.test", resource_server="shop"))
stored = protected(Opaque())


@app.put("/authlib/<int:order_id>")
@signed("orders:write")
def with_authlib(order_id):
    return {}


@app.delete("/authlib/<int:order_id>")
@signed("orders:delete")
def without_the_scope(order_id):
    return {}


@app.put("/opaque/<int:order_id>")
@stored("orders:write")
def with_opaque_tokens(order_id):
    return {}


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), threaded=True)
