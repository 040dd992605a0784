"""A FastAPI service with WebSockets, on its router, on a mounted application, and behind authentication."""

import auditspan
from fastapi import FastAPI, WebSocket, WebSocketException
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse

ROLES = {"alice": ["sales", "admin"], "bob": ["sales"]}


class Bearer(AuthenticationBackend):
    async def authenticate(self, conn):
        token = conn.headers.get("authorization", "").removeprefix("Bearer ")
        name = token.removesuffix("-token")
        if token and name not in ROLES:
            raise AuthenticationError("bad token")
        return (AuthCredentials(ROLES[name]), SimpleUser(name)) if token else None


app = FastAPI()
inside = FastAPI()
app.add_middleware(AuthenticationMiddleware, backend=Bearer())


@app.post("/orders")
async def create():
    return {"id": 7}


@inside.websocket("/{room}")
@app.websocket("/rooms/{room}")
async def talk(websocket: WebSocket, room: str):
    if room == "secret":
        raise WebSocketException(1008)
    if room == "cellar":
        await websocket.send_denial_response(PlainTextResponse("who are you?", 401))
        return
    await websocket.accept()
    while True:
        text = await websocket.receive_text()  # raises when the client leaves, and nobody catches it
        if text == "raise":
            raise RuntimeError("out of luck")
        if text.startswith("close "):
            await websocket.close(int(text.removeprefix("close ")))
            return
        if text.startswith("i am "):
            auditspan.set_actor(text.removeprefix("i am "))
        elif text == "charge":
            with auditspan.record("CHARGE", target_type="card"):
                pass
        await websocket.send_text(text)


app.mount("/inside", inside)
