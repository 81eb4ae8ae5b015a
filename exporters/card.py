"""The model card: what a bundle is, was made of, and is worth, in Markdown."""

from __future__ import annotations

from typing import Any

from exporters.bundle import InputSpec, Manifest


def model_card(manifest: Manifest) -> str:
    """Write the card of a bundle from its manifest."""
    spec, made = manifest.input, manifest.provenance
    lines = [
        f"# {manifest.name}, version {manifest.version}",
        "",
        manifest.description or "A backbone for personal heads.",
        "",
        "## Use",
        f"* Input `{spec.name}`: {spec.datatype} `[rows, {', '.join(map(str, spec.window_shape))}]`, raw {spec.unit}"
        f"{_timing(spec)}; modality {spec.modality}, electrode layout: {spec.channel_layout}.",
        f"* Inside the graph: {manifest.preprocessing.rstrip('.')}.",
        *_outputs(manifest),
        f"* Feature space `{manifest.feature_space}`: heads fitted in it are valid in no other.",
        "",
        "## Made by",
    ]
    told = ("recipe", "seed", "command", "commit", "torch")
    lines += [f"* {key}: `{made[key]}`" for key in told if made.get(key) not in (None, "")]
    subjects = made.get("subjects", [])
    if subjects:
        lines.append(f"* {len(subjects)} population subjects: {', '.join(s['stem'] for s in subjects)}")
    lines += ["", "## Checked", *_checked(manifest)]
    for of in _each(manifest):
        lines += _record(of)
    lines += ["", "## Licence", manifest.licence]
    if manifest.citation:
        lines += ["", "## Cite", manifest.citation]
    return "\n".join(lines) + "\n"


def _each(manifest: Manifest) -> list[Manifest]:
    """What is said of each output; the manifest itself where there is one."""
    return [manifest.of_output(name) for name in manifest.names] or [manifest]


def _record(manifest: Manifest) -> list[str]:
    """What personal heads of an output did for people left out."""
    heading = f"## Left-out population users{f': {manifest.output}' if manifest.output else ''}"
    if manifest.task == "classification" and manifest.head.evidence:
        return [
            "",
            heading,
            "Accuracy gained by a personal head over the generic one, for users that the backbone was not trained on:",
            "",
            "| labelled windows a class | repetitions | users | gain | at least (95 %) |",
            "|--|--|--|--|--|",
            *(
                f"| {e.windows} | {e.repetitions} | {e.users} | {e.gain:+.1%} | {e.lower:+.1%} |"
                for e in manifest.head.evidence
            ),
        ]
    if manifest.regression is not None and manifest.regression.evidence:
        return [
            "",
            heading,
            "Mean squared error that a personal head saves, the shared head's being 1:",
            "",
            "| labelled windows | repetitions | users | saved | at least (95 %) |",
            "|--|--|--|--|--|",
            *(
                f"| {e.windows} | {e.repetitions} | {e.users} | {e.gain:+.3f} | {e.lower:+.3f} |"
                for e in manifest.regression.evidence
            ),
        ]
    return []


def _outputs(manifest: Manifest) -> list[str]:
    """What the heads of each output say."""

    def heads(of: Manifest) -> str:
        """Describe those of one."""
        kind = "targets" if of.targets else "labels"
        return f"heads for {len(of.head_rows)} {kind}: {', '.join(of.head_rows)}{_room(of)}."

    if not manifest.outputs:
        return [f"* Output: {manifest.feature_dim} features; {heads(manifest)}"]
    told = (f"* Output `{of.output}`: {heads(of)} They read {of.feature_dim} features." for of in _each(manifest))
    return [f"* {manifest.feature_dim} features, for all outputs.", *told]


def _checked(manifest: Manifest) -> list[str]:
    """What was measured of the graph: parity with torch, a variant beside its original, bridges."""
    parity, variant = manifest.parity, manifest.provenance.get("precision")
    lines = [f"* opset {manifest.opset}, {manifest.precision}."]
    if parity:
        lines.append(
            f"* ONNX Runtime against torch on {parity['windows']} real windows, batches {parity['batches']}: "
            f"largest error {parity['max_error']:.1e} (allowed {parity['tolerance']:.0e}), "
            f"lowest cosine {parity['min_cosine']:.7f}."
        )
    if variant:
        lines.append(
            f"* {manifest.precision} against version {variant['from']['version']} on {variant['windows']} "
            f"{variant['how']}: "
            f"largest error {variant['max_error']:.1e} standard deviations, {variant['decisions_agree']:.3%} of the "
            f"decisions of {variant['heads']} heads the same; feature space "
            f"{'kept' if variant['feature_space_kept'] else 'of its own'}."
        )
    if variant and (task := variant.get("task")):
        lines += [f"* Right in fp32 and {manifest.precision}: {_task(task)}; {task['people']} people."]
    for space, entry in manifest.bridges.items():
        worth = entry.parity
        lines.append(
            f"* Bridge from version {entry.version} (feature space `{space}`): {worth.bridged:.2%} of windows right by "
            f"heads that came over it, {worth.inputs:.2%} by heads fitted anew from windows, {worth.generic:.2%} by "
            f"the shared head, for {worth.users} people it was not fitted on."
        )
    return lines


def _task(task: dict[str, Any]) -> str:
    said = f"the shared head {task['shared']:.2%} and {task['shared_int8']:.2%}"
    if task["personal"] is None:
        return said
    return f"{said}, heads fitted on a first repetition {task['personal']:.2%} and {task['personal_int8']:.2%}"


def _room(manifest: Manifest) -> str:
    return f"; a user may add {manifest.user_labels} of their own" if manifest.user_labels else ""


def _timing(spec: InputSpec) -> str:
    if not spec.sample_rate:
        return ""
    length = spec.window_shape[-1]
    span = "" if length == -1 else f"{length / spec.sample_rate * 1e3:.0f} ms a window, "
    return f" at {spec.sample_rate:g} Hz ({span}{spec.stride} samples apart)"
