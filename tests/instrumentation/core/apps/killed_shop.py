"""The shop, killed as soon as the last of a PUT's response is on its way."""

import os
import signal

from fastapi_shop import app as shop


async def app(scope, receive, send):
    async def send_and_die(message):
        await send(message)
        if (
            scope.get("method") == "PUT"
            and message["type"] == "http.response.body"
            and not message.get("more_body")
        ):
            os.kill(os.getpid(), signal.SIGKILL)

    await shop(scope, receive, send_and_die)
