"""What one would write in an hour: FastAPI, pydantic, a session, one forward a request."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from personal_model import PersonalModel
from pydantic import BaseModel

app = FastAPI()
model = PersonalModel()


class Window(BaseModel):
    """The JSON body."""

    user: int
    input: list[Any]


@app.post("/dense")
async def dense(request: Request) -> Response:
    """Answer float32 probabilities to a dense body."""
    probabilities = model(*model.dense(await request.body()))
    return Response(probabilities.tobytes(), media_type="application/octet-stream")


@app.post("/json")
async def json(window: Window) -> dict[str, Any]:
    """Answer JSON to JSON."""
    return {"probabilities": model(*model.nested(window.input, window.user)).tolist()}
