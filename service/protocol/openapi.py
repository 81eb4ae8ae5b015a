"""Descriptions for /openapi.json of bodies that are decoded by hand."""

from __future__ import annotations

from typing import Any

from models.data.views import MOST_VIEWS
from models.heads.calibration import METHODS
from models.heads.confidence import LEVELS
from service.protocol.compression import CODINGS
from service.protocol.media import CONTENT_TYPES
from service.protocol.parameters import FALLBACKS

BINARY = {"schema": {"type": "string", "format": "binary"}}
STRING, BOOLEAN, INTEGER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
NUMBERS = {"type": "array", "items": {}, "description": "nested array of numbers: one window, or a batch of windows"}
ENCODED_MEDIA = {
    "anyOf": [STRING, {"type": "array", "items": STRING}],
    "description": "for a model of texts: a text, or some; of images or sounds: files in base64",
}
BY_PART = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"anyOf": [NUMBERS, ENCODED_MEDIA]},
    "description": "for a model of several inputs: one or more of them by name",
}

TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": STRING,
        "shape": {"type": "array", "items": INTEGER},
        "datatype": STRING,
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object", "properties": {"binary_data_size": INTEGER}},
    },
}


OUTPUT_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "binary_data": BOOLEAN,
        "classification": {
            "type": "integer",
            "minimum": 1,
            "description": "of probabilities and logits: the top classes, as BYTES 'value:index:label'",
        },
    },
}

TTA: dict[str, Any] = {
    "type": "integer",
    "minimum": 1,
    "maximum": MOST_VIEWS,
    "default": 1,
    "description": "views of each window whose features are averaged",
}
REQUEST_PARAMETERS: dict[str, Any] = {
    "user_id": STRING,
    "head_version": {"type": "integer", "minimum": 0},
    "fallback": {"type": "string", "enum": list(FALLBACKS), "default": "shared"},
    "timeout": {"type": "integer", "minimum": 0, "description": "µs"},
    "priority": {"type": "integer", "minimum": 0, "default": 0, "description": "1 is the highest"},
    "binary_data_output": BOOLEAN,
    "threshold": {"type": "number", "minimum": 0, "maximum": 1, "description": "rows less probable are rejected"},
    "coverage": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": LEVELS[-1],
        "description": "each row gets a set of labels that holds the true one so often",
    },
    "feedback": {"type": "boolean", "default": False, "description": "remember the answer for a correction"},
    "tta": TTA,
    "task": {"type": "string", "description": "of a model with several outputs, the one that answers; else all do"},
}


def _header(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


ENCODED = _header("Content-Encoding", {"type": "string", "enum": list(CODINGS)}, "how the body is compressed")
ACCEPTED = _header("Accept-Encoding", STRING, "gzip or deflate: answers over 1 KiB are compressed so")
BINARY_AFTER = _header(
    "Inference-Header-Content-Length",
    {"type": "integer", "minimum": 0},
    "bytes of JSON before the binary data; 0: the whole body is the one input, and parameters are the query's",
)
IN_RAW_BINARY = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": "in raw binary only"}
    for name, schema in REQUEST_PARAMETERS.items()
]


def _body(content: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}, "parameters": [*parameters, ENCODED]}


INFER_BODY = _body(
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": STRING,
                    "inputs": {"type": "array", "items": TENSOR, "minItems": 1},
                    "outputs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": STRING,
                                "parameters": OUTPUT_PARAMETERS,
                            },
                        },
                    },
                    "parameters": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": REQUEST_PARAMETERS,
                    },
                },
            }
        },
        "application/octet-stream": BINARY,
    },
    BINARY_AFTER,
    ACCEPTED,
    *IN_RAW_BINARY,
)

WINDOWS_BODY = _body(
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": {"anyOf": [NUMBERS, ENCODED_MEDIA, BY_PART]}},
            }
        },
        "application/x-npy": BINARY,
        **{name: BINARY for names in CONTENT_TYPES.values() for name in names},
    },
    ACCEPTED,
)

LABELLED: dict[str, Any] = {
    "inputs": {"anyOf": [NUMBERS, ENCODED_MEDIA, BY_PART, {"type": "array", "items": TENSOR, "minItems": 1}]},
    "labels": {"type": "array", "items": STRING, "description": "one a window; of a classification"},
    "tta": TTA,
}
TARGETS: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [{"type": "array", "items": {"type": "number"}}, TENSOR]},
    "description": "of a regression, instead of labels: one row of numbers a window, or one tensor",
}
REPETITIONS = {"type": "array", "items": INTEGER, "description": "one a window"}


def _labelled(required: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    """Describe labelled windows with further fields, in JSON or in the binary layout."""
    schema = {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": {**LABELLED, **fields},
    }
    return _body({"application/json": {"schema": schema}, "application/octet-stream": BINARY}, BINARY_AFTER)


CALIBRATION_BODY = _labelled(
    [],
    {
        "targets": TARGETS,
        "repetitions": REPETITIONS,
        "mode": {"type": "string", "enum": ["update", "replace"], "default": "update"},
        "method": {"type": "string", "enum": list(METHODS), "default": "map"},
        "activate": {"type": "string", "enum": ["if_better", "always", "never"], "default": "if_better"},
        "among": {"type": "string", "enum": ["all", "shown"], "default": "all", "description": "labels of answers"},
        "dry_run": {"type": "boolean", "default": False},
        "seed": {"type": "integer", "default": 0},
    },
)

EVALUATION_BODY = _labelled(
    ["inputs"],
    {
        "targets": TARGETS,
        "versions": {
            "type": "array",
            "items": {"anyOf": [INTEGER, {"type": "string", "enum": ["shared", "active"]}]},
            "default": ["shared", "active"],
        },
    },
)

SAMPLES_BODY = _labelled(
    ["inputs", "labels"],
    {
        "repetitions": REPETITIONS,
        "accept": {
            "type": "array",
            "items": {"type": "string", "enum": ["clipped", "off_distribution"]},
            "description": "verdicts with which windows are enrolled all the same",
        },
    },
)

ADAPTATION_BODY = _body(
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "additionalProperties": False,
                "properties": {
                    "inputs": {"anyOf": [NUMBERS, BY_PART, {"type": "array", "items": TENSOR, "minItems": 1}]},
                    "activate": {"type": "string", "enum": ["if_better", "never"], "default": "if_better"},
                    "dry_run": {"type": "boolean", "default": False},
                },
            }
        },
        "application/octet-stream": BINARY,
    },
    BINARY_AFTER,
)
