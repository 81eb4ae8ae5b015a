"""Several bundles become one: their graphs behind one packed input, and what joins their features behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Bundle, InputSpec, Manifest
from exporters.card import model_card
from exporters.export import OPSET, ExportError, onnx_forward
from exporters.fused_graph import fused_graph
from exporters.input_spec import PART_NAME, RESERVED_PARTS
from exporters.media_spec import TextMedia
from exporters.parity import BATCHES, check_parity
from models.data.parts import fused_input, present, unpack, with_missing
from models.heads import prior as priors
from models.heads.head import Head
from models.heads.prior import Prior
from models.training.joining import Join


@dataclass(frozen=True, eq=False)
class Member:
    """A bundle that is one part of a fused one, called `name` there."""

    name: str
    bundle: Bundle

    def __post_init__(self) -> None:
        if not re.match(PART_NAME, self.name) or self.name in RESERVED_PARTS:
            raise ExportError(
                f"{self.name!r} cannot be an input's name: lower-case letters, digits and _ can, but not "
                f"{', '.join(sorted(RESERVED_PARTS))}"
            )
        manifest = self.bundle.manifest
        if manifest.targets or manifest.user_labels:
            what = "a regression" if manifest.targets else "open to labels of users' own"
            raise ExportError(f"member {self.name!r} is {what}; bundles with a closed set of labels can be fused")
        if manifest.input.parts:
            raise ExportError(f"member {self.name!r} is fused itself; name its members instead")
        if manifest.input.padding is not None and manifest.input.padding.lengths is not None:
            raise ExportError(f"member {self.name!r} takes lengths as a second input, which cannot be fused")

    @property
    def part(self) -> InputSpec:
        """The member's input as a part of the fused one."""
        spec = self.bundle.manifest.input
        media = spec.media
        if isinstance(media, TextMedia):
            media = media.model_copy(update={"tokenizer": f"{self.name}.{media.tokenizer}"})
        return spec.model_copy(update={"name": self.name, "media": media})

    @property
    def files(self) -> dict[str, bytes]:
        """What reading its media needs, as the fused bundle names it."""
        media = self.bundle.manifest.input.media
        if not isinstance(media, TextMedia):
            return {}
        return {f"{self.name}.{media.tokenizer}": self.bundle.file(media.tokenizer)}

    def head(self, labels: Sequence[str]) -> Head:
        """The generic head with its rows in the order of these labels.

        Raises:
            ExportError: the member has other labels.
        """
        own = self.bundle.manifest.labels
        if set(own) != set(labels) or len(own) != len(labels):
            raise ExportError(
                f"members must have the same labels: {self.name!r} has {', '.join(own)}, another {', '.join(labels)}"
            )
        order = [own.index(label) for label in labels]
        prior = self.bundle.prior
        return Head(prior.generic_weight[order], prior.generic_bias[order])


def write_fused(
    members: Sequence[Member],
    join: Join,
    prior: Prior,
    rows: NDArray[np.float32],
    models: Path,
    *,
    name: str,
    provenance: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    description: str = "",
) -> Path:
    """Write the fused bundle as the next version of its name, through the parity gate; returns its folder.

    `rows`: real windows, packed, 64 or more, for the gate: members' graphs, run one by one, and the join tell what the
    features must be, of whole windows and of windows that a part is taken out of.

    Raises:
        ExportError: ONNX refuses the graph.
        ParityError: it does not compute what its members and the join do; nothing is written.
    """
    spec = fused_input([member.part for member in members])
    graph = fused_graph({m.name: m.bundle.backbone for m in members}, join, spec)
    batches = sorted({min(size, len(rows)) for size in BATCHES})
    parity = check_parity(
        reference(members, join, spec), onnx_forward(graph), with_missing(spec, rows), batches=batches
    )
    files = {name: data for member in members for name, data in member.files.items()}
    licences = sorted({member.bundle.manifest.licence for member in members})
    manifest = Manifest(
        name=name,
        version=bundles.next_version(models, name),
        description=description,
        feature_space=bundles.feature_space(graph + b"".join(data for _, data in sorted(files.items()))),
        labels=prior.labels,
        input=spec,
        preprocessing=_preprocessing(members),
        feature_dim=prior.dim,
        opset=OPSET,
        precision=next((m.bundle.manifest.precision for m in members if m.bundle.manifest.precision != "fp32"), "fp32"),
        head=prior.hyper,
        parity={**parity, "against": "its members' graphs, run one by one"},
        provenance=dict(provenance),
        evaluation=dict(evaluation),
        licence=" and ".join(licences),
        citation="\n".join(dict.fromkeys(m.bundle.manifest.citation for m in members if m.bundle.manifest.citation)),
        created=str(provenance.get("finished", "")),
        files={},
    )
    contents = {
        bundles.BACKBONE: graph,
        bundles.PRIOR: priors.to_bytes(prior),
        bundles.CARD: model_card(manifest).encode(),
        **files,
    }
    return bundles.write(models, manifest, contents)


def _preprocessing(members: Sequence[Member]) -> str:
    """What each graph does to raw input; members that do the same are named together."""
    found: dict[str, list[str]] = {}
    for m in members:
        found.setdefault(m.bundle.manifest.preprocessing.rstrip("."), []).append(m.name)
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in found.items())


def reference(members: Sequence[Member], join: Join, spec: InputSpec) -> Any:
    """What the fused graph must compute: the members' own graphs on the parts, then the join in float64."""
    runs = [onnx_forward(member.bundle.backbone) for member in members]

    def forward(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of packed rows `(n, total)`; a member sees only the rows that its part is in."""
        parts, there = unpack(spec, rows), present(spec, rows)
        found = []
        for m, (member, run) in enumerate(zip(members, runs, strict=True)):
            z = np.zeros((len(rows), member.bundle.manifest.feature_dim))
            if there[:, m].any():
                z[there[:, m]] = run(parts[member.name][there[:, m]])
            found.append(z)
        return join.features(found, there).astype(np.float32)

    return forward
