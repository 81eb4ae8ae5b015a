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
        *(["* One or more of these inputs; what is missing is made up for."] if spec.parts else []),
        *map(_input, spec.parts or (spec,)),
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
        stems = list(dict.fromkeys(s["stem"] for s in subjects))  # of a fused bundle each has a file a part
        lines.append(f"* {len(stems)} population subjects: {', '.join(stems)}")
    lines += ["", "## Checked", *_checked(manifest)]
    if "variants" in manifest.evaluation:
        lines += ["", "## Variants", *_variants(manifest.evaluation["variants"])]
    for of in _each(manifest):
        lines += _record(of)
    lines += ["", "## Licence", manifest.licence]
    if manifest.citation:
        lines += ["", "## Cite", manifest.citation]
    return "\n".join(lines) + "\n"


def _input(spec: InputSpec) -> str:
    shape = ", ".join(map(str, spec.window_shape))
    return (
        f"* Input `{spec.name}`: {spec.datatype} `[rows, {shape}]`, raw {spec.unit}{_timing(spec)}; "
        f"modality {spec.modality}, electrode layout: {spec.channel_layout}."
    )


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
    told = (
        f"* Output `{of.output}`: {heads(of)} They read {of.feature_dim} features.{_worth(of)}"
        for of in _each(manifest)
    )
    return [f"* {manifest.feature_dim} features, for all outputs.", *told]


def _worth(manifest: Manifest) -> str:
    """What the shared head of one of several outputs did on what it was not fitted on, where that is known."""
    found = manifest.evaluation.get("zero_shot") or manifest.evaluation.get("left_out_people") or {}
    whose = "items" if found.get("of") in ("items", "classes") else "people"
    accuracy = found.get("mean", found.get("accuracy"))
    if accuracy is not None:
        worst = "label" if found.get("of") == "classes" else "of them"
        return f" Shared head on left-out {whose}: {accuracy:.1%} right, {found['worst']:.1%} for the worst {worst}."
    if "rmse" not in found:
        return ""
    explained = found.get("r2", {})
    each = (
        f"{target} {found['rmse'][target.name]:.4g}"
        + (f" (R² {explained[target.name]:.3f})" if target.name in explained else "")
        for target in manifest.targets
    )
    return f" Root mean squared error of the shared head on left-out {whose}: {', '.join(each)}."


def _checked(manifest: Manifest) -> list[str]:
    """What was measured of the graph: parity with torch, a variant beside its original, bridges."""
    parity, variant = manifest.parity, manifest.provenance.get("precision")
    lines = [f"* opset {manifest.opset}, {manifest.precision}."]
    if parity:
        lines.append(
            f"* ONNX Runtime in fp32 against {parity.get('against', 'torch')} on {parity['windows']} real windows, "
            f"batches {parity['batches']}: "
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
    if variant and variant.get("outputs"):
        lines += ["", *_variant_outputs(manifest, variant), ""]
    others = (each.bridges for each in manifest.outputs)
    for space, entry in (pair for found in (manifest.bridges, *others) for pair in found.items()):
        worth = entry.parity
        lines.append(
            f"* Bridge from version {entry.version} (feature space `{space}`): {worth.bridged:.2%} of windows right by "
            f"heads that came over it, {worth.inputs:.2%} by heads fitted anew from windows, {worth.generic:.2%} by "
            f"the shared head, for {worth.users} people it was not fitted on."
        )
    return lines


def _variant_outputs(manifest: Manifest, variant: dict[str, Any]) -> list[str]:
    """The table of what each output says and is worth in a variant."""
    tasks = variant.get("tasks", {})
    rows = [
        f"| output | as in fp32 | worth in fp32 and {manifest.precision} | people | feature space |",
        "|--|--|--|--|--|",
    ]
    for name, said in variant["outputs"].items():
        task = tasks.get(name)
        worth, people = ("–", "–") if task is None else (_worth_in_both(task), str(task["people"]))
        kept = "kept" if said["feature_space_kept"] else "of its own"
        rows.append(f"| {name or 'values'} | {_as_fp32(said)} | {worth} | {people} | {kept} |")
    return rows


def _as_fp32(said: dict[str, Any]) -> str:
    """How much of what an output's heads say is as in fp32."""
    if said.get("change") is not None:
        return f"values within {said['change']:.2%} of the usual error"
    return f"{said['decisions']:.2%} of decisions kept"


def _worth_in_both(task: dict[str, Any]) -> str:
    if not task["rmse"]:
        return _task(task)
    both = (", ".join(f"{value:.4g}" for value in task[which]) for which in ("rmse", "rmse_int8"))
    said = "shared head's RMSE {} and {}".format(*both)
    if task["personal"] is None:
        return said
    return f"{said}, personal heads' {task['personal']:.3f} and {task['personal_int8']:.3f} of the usual"


def inputs_of(inputs: int, people: int) -> str:
    """So many inputs of so many people; of 0 it is not known whose they are."""
    if not people:
        return f"{inputs} inputs without users"
    return f"{inputs} inputs of {people} {'person' if people == 1 else 'people'}"


def _variants(record: dict[str, Any]) -> list[str]:
    """The table of variants that were built and timed, and how."""
    asked, machine = record["asked"], record["machine"]
    judged = record["people"] is not None
    threads = "all threads" if not asked["threads"] else f"threads: {asked['threads']}"
    if judged:
        seen, people = record["trained_on"], record["people"]
        known = "" if seen is None else f", {seen} of whom the run was trained on"
        by = (
            "Accuracy of the shared head / of heads fitted on a first repetition: "
            f"{inputs_of(record['windows'], people)}{known}."
        )
    else:
        by = (
            "There was no labelled data to judge accuracy by: variants are ranked by the share of decisions of "
            f"{record['heads']} heads that are as in fp32, on the {record['windows']} inputs that the run holds."
        )
    compared = (row["agreement"] for row in record["rows"] if row["agreement"] is not None)
    first: dict[str, Any] = next(compared, {})
    names = list(first.get("outputs", {}))
    several = [f"{name or 'values'} | " for name in names] or (["accuracy | "] if judged else [])
    rows = [
        f"Asked for: {asked['milliseconds']:g} ms, in the median, for a batch of {asked['batch']} on "
        f"{asked['device']} ({machine['processor']}, {threads}, ONNX Runtime {machine['onnxruntime']}).",
        f"{by} Ranges of activations are of {record['range_windows']} inputs of the run.",
        "",
        f"| variant | MB | one window, ms: median / 95 % | batch of {asked['batch']}, ms | of fp32 | lowest cosine "
        f"| largest error, sd | decisions kept | {''.join(several)}|",
        "|--|--|--|--|--|--|--|--|--|" + "--|" * len(several),
    ]
    for row in record["rows"]:
        cells = [f"{row['name']}: {row['how']}".rstrip(": "), *_figures(row)]
        if names:
            cells += [_output_worth(row, name) for name in names]
        elif judged:
            cells.append(_percent(row["accuracy"]))
        rows.append(f"| {' | '.join([*cells, row['verdict'].replace('|', '/')])} |")
    return rows


def _figures(row: dict[str, Any]) -> list[str]:
    timing, found = row["timing"], row["agreement"]
    size = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "–"
    times = ["–"] * 3
    if timing is not None:
        one, many = timing["single"], timing["batch"]
        times = [*(f"{t['median']:.2f} / {t['p95']:.2f}" for t in (one, many)), f"{row['ratio']:.2f}"]
    if found is None:
        return [size, *times, "–", "–", "–"]
    return [size, *times, f"{found['min_cosine']:.4f}", f"{found['max_error']:.2g}", f"{found['decisions']:.2%}"]


def _output_worth(row: dict[str, Any], output: str) -> str:
    """What an output is worth in a variant, or how much of what it says is as in fp32."""
    worth, found = row["outputs"].get(output), row["agreement"]
    if worth is None:
        return "–" if found is None else _as_fp32(found["outputs"][output])
    if "rmse" not in worth:
        return _percent(worth)
    said = f"RMSE {', '.join(f'{value:.4g}' for value in worth['rmse'])}"
    return said if worth["personal"] is None else f"{said}; personal {worth['personal']:.3f} of the usual"


def _percent(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "–"
    shared, personal = accuracy["shared"], accuracy["personal"]
    return f"{shared:.2%}" if personal is None else f"{shared:.2%} / {personal:.2%}"


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
