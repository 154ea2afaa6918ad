"""FastAPI and an engine: the script of an hour. `uvicorn script:app --workers N`, with ENGINE, THREADS, CALLS, MODEL.

A `def` endpoint runs in Starlette's pool of threads, as FastAPI's documentation says for work that blocks. The pool
has as many threads as inferences are to run at once; more would only share the cores.
"""

from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
import orjson
from engines import CALLS, open_engine
from fastapi import Body, FastAPI, Response
from picture import predict

engine = open_engine()


@asynccontextmanager
async def lifespan(_app):
    """Set the size of the pool."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = CALLS
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def find(image: Annotated[bytes, Body(media_type="image/jpeg")]):
    """Answer with the instances of an encoded picture."""
    return Response(orjson.dumps(predict(image, engine)), media_type="application/json")
