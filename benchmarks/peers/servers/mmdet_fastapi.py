"""mmdetection behind FastAPI: `uvicorn mmdet_fastapi:app --workers N`, with THREADS, CONFIG, CHECKPOINT."""

from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
import orjson
from fastapi import Body, FastAPI, Response
from mmdet_model import Detector

detector = Detector()


@asynccontextmanager
async def lifespan(_app):
    """Let one request after the other use the threads of PyTorch."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def find(image: Annotated[bytes, Body(media_type="image/jpeg")]):
    """Answer with the instances of an encoded picture."""
    return Response(orjson.dumps(detector.predict(image)), media_type="application/json")
