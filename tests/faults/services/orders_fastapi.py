"""Takes orders; an order named ``exit`` ends the process on the spot."""

import os

from fastapi import FastAPI, HTTPException

app = FastAPI()


@app.post("/orders/{order_id}")
async def order(order_id: str):
    if order_id == "exit":
        os._exit(1)
    return {"order": order_id}


@app.get("/secrets/{name}")
async def refuse(name: str):
    raise HTTPException(401)
