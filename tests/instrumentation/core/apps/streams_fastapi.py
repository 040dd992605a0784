"""Responses that come in pieces, break, never end, or never begin."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()
finished = asyncio.Event()


async def pieces(kind):
    for number in range(10**6 if kind == "endless" else 3):
        if kind == "breaks" and number == 1:
            raise RuntimeError("out of luck")
        yield f"{number}\n"
        await asyncio.sleep(0.01)


@app.post("/streams/{kind}")
async def stream(kind: str):
    return StreamingResponse(pieces(kind))


@app.post("/threads/{kind}")
def stream_from_a_thread(kind: str):
    def plain():
        for number in range(3):
            if kind == "breaks" and number == 1:
                raise RuntimeError("out of luck")
            yield f"{number}\n"

    return StreamingResponse(plain())


@app.post("/slow/{seconds}")
async def slow(seconds: float):
    await asyncio.sleep(seconds)
    return {}


@app.post("/cancelled")
async def cancelled():
    raise asyncio.CancelledError


@app.post("/watching")
async def watching(request: Request):
    while not await request.is_disconnected():  # noqa: ASYNC110 - how Starlette tells
        await asyncio.sleep(0.01)
    raise RuntimeError("nobody there")


@app.post("/uploads")
async def uploads(request: Request):
    return {"size": len(await request.body())}
