"""Descriptions for /openapi.json of bodies that are decoded by hand."""

from __future__ import annotations

from typing import Any

from models.heads.calibration import METHODS

BINARY = {"schema": {"type": "string", "format": "binary"}}
STRING, BOOLEAN, INTEGER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
NUMBERS = {"type": "array", "items": {}, "description": "nested array of numbers: one window, or a batch of windows"}

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


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


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
                                "parameters": {"type": "object", "properties": {"binary_data": BOOLEAN}},
                            },
                        },
                    },
                    "parameters": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "user_id": STRING,
                            "head_version": INTEGER,
                            "fallback": {"type": "string", "enum": ["shared", "error"]},
                            "timeout": {"type": "integer", "description": "µs"},
                            "binary_data_output": BOOLEAN,
                        },
                    },
                },
            }
        },
        "application/octet-stream": BINARY,
    }
)

WINDOWS_BODY = _body(
    {
        "application/json": {"schema": {"type": "object", "required": ["inputs"], "properties": {"inputs": NUMBERS}}},
        "application/x-npy": BINARY,
    }
)

CALIBRATION_BODY = _body(
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs", "labels"],
                "additionalProperties": False,
                "properties": {
                    "inputs": {"anyOf": [NUMBERS, {"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 1}]},
                    "labels": {"type": "array", "items": STRING, "description": "one a window"},
                    "repetitions": {"type": "array", "items": INTEGER, "description": "one a window"},
                    "mode": {"type": "string", "enum": ["update", "replace"], "default": "update"},
                    "method": {"type": "string", "enum": list(METHODS), "default": "map"},
                    "activate": {"type": "string", "enum": ["if_better", "always", "never"], "default": "if_better"},
                    "dry_run": {"type": "boolean", "default": False},
                    "seed": {"type": "integer", "default": 0},
                },
            }
        },
        "application/octet-stream": BINARY,
    }
)
