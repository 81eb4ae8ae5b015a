"""A correction of a prediction becomes a sample."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from models.heads.inputs import inspect
from service.answered import Answer, process_of
from service.errors import Conflict, NotFound
from service.loaded import LoadedModel
from service.personal.kept import Kept
from service.protocol import inputs
from service.protocol.body import json_bytes, json_response
from service.routes.of_user import USER
from service.routes.samples import enrolled
from service.state import ClassifierOf, Services, ServicesOf, UserId, known_user

router = APIRouter(tags=["users"])


class Correction(BaseModel):
    """What a prediction should have been: one label for all its rows, or one a row."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: Annotated[str, Field(max_length=64)]
    label: str | None = None
    labels: list[str] | None = None
    repetition: Annotated[int, Field(ge=-(2**62), le=2**62)] = 0
    accept: list[Literal["clipped", "off_distribution"]] = []

    @model_validator(mode="after")
    def _one_of_both(self) -> Correction:
        if (self.label is None) == (self.labels is None):
            raise ValueError("give either label, for all rows of the prediction, or labels, one a row")
        return self


@router.post(f"{USER}/feedback", summary="Correct a prediction: its windows become samples", status_code=201)
async def correct(own: ServicesOf, model: ClassifierOf, user: UserId, given: Correction) -> Response:
    """Enrol the features of a prediction that asked for `feedback`, with the label that it should have had."""
    user = known_user(user)
    answer = await _found(own, user, given.prediction_id)
    model = _same_space(own, model, answer)
    rows = len(answer.features)
    labels = given.labels if given.labels is not None else [given.label] * rows
    y, names = inputs.class_indices(labels, rows, model.labels, model.prior.own)
    kept = Kept(answer.features, y, np.full(rows, given.repetition, np.int64))
    found = inspect(None, answer.features, model.bundle.prior)
    # A prediction is corrected once: the same call again answers the same, another label is a conflict.
    key, digest = f"feedback {given.prediction_id}", hashlib.sha256(json_bytes(given.model_dump())).hexdigest()
    return json_response(*await enrolled(own, model, user, kept, names, found, given.accept, key, digest))


async def _found(own: Services, user: str, number: str) -> Answer:
    process, answer = process_of(number), None
    if process == 0:
        answer = own.plane.feedback.find(number)
    elif process is not None and own.answered_elsewhere is not None:
        answer = await own.answered_elsewhere(process, number)
    if answer is None or answer.user != user:
        raise NotFound(
            f"there is no prediction {number!r} of user {user!r} to correct: ask for it with the parameter feedback, "
            "and correct it within 15 minutes"
        )
    return answer


def _same_space(own: Services, model: LoadedModel, answer: Answer) -> LoadedModel:
    """Return the version of the model in whose feature space the prediction was made."""
    for candidate in own.models.candidates(model.name):
        for output in candidate.each:
            if output.scope == answer.scope:
                if output.scope.output != model.scope.output:
                    raise Conflict(f"the prediction is of the output {output.output!r}, not of {model.output!r}")
                return output
    raise Conflict(f"the prediction was made by a version of model {model.name!r} that is served no longer")
