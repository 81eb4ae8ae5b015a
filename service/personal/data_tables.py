"""Tables of what users let be kept of them, beside their heads.

Settings are of a user of a model, whatever its feature space: a choice stays true after an upgrade. Windows and
statistics are of a feature space, as heads are.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, LargeBinary, Table

from service.personal.schema import Number, Text, metadata

SCOPE = ("tenant", "model", "feature_space", "user")

user_settings = Table(
    "user_settings",
    metadata,
    *[Column(name, Text, primary_key=True) for name in ("tenant", "model", "user")],
    Column("retention", Text, nullable=False, doc="none, statistics, features or inputs"),
    Column("adapt", Text, nullable=False, doc="off, suggest or on"),
    Column("attributes", JSON, nullable=False, doc="the caller's own metadata"),
    Column("half_life", Float, nullable=False, doc="days after which a labelled window counts half; 0: never"),
    Column("updated", Float, nullable=False),
)

enrolled = Table(
    "enrolled",
    metadata,
    *[Column(name, Text, primary_key=True) for name in SCOPE],
    Column("revision", Number, nullable=False, doc="grows with every change of what is enrolled"),
    Column("statistics", LargeBinary, doc="of windows enrolled at the level `statistics`"),
)

enrolled_windows = Table(
    "enrolled_windows",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    *[Column(name, Text, nullable=False) for name in SCOPE],
    Column("counts", JSON, nullable=False, doc="class, repetition and number of windows, for each of both"),
    Column("data", LargeBinary, nullable=False, doc="safetensors: z, y, repetition, and x where inputs are kept"),
    Index("enrolled_windows_user", *SCOPE),
)

retained = Table(
    "retained",
    metadata,
    *[Column(name, Text, primary_key=True) for name in SCOPE],
    Column("version", Number, primary_key=True),
    Column("data", LargeBinary, nullable=False, doc="all windows behind a version, as in enrolled_windows"),
)

own_labels = Table(
    "own_labels",
    metadata,
    *[Column(name, Text, primary_key=True) for name in SCOPE],
    Column("labels", JSON, nullable=False, doc="labels that the user added, in the order of their classes"),
)

sample_calls = Table(
    "sample_calls",
    metadata,
    *[Column(name, Text, primary_key=True) for name in (*SCOPE, "idempotency_key")],
    Column("request_digest", Text, nullable=False),
    Column("answer", JSON, nullable=False),
    Column("at", Float, nullable=False),
)
