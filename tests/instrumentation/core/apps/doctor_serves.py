"""A module that serves as soon as it is imported."""

import uvicorn
from fastapi import FastAPI

app = FastAPI()
uvicorn.run(app, port=0, log_level="critical")
