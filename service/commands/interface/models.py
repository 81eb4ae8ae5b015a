"""`headway train`, `export`, `evaluate` and `report`: from recordings to a bundle, and what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import AnyData, DataDir, MediaDir, Out, Seed, Subjects, command_line, console

app = typer.Typer()


@app.command()
def train(
    data: AnyData,
    out: Out,
    subjects: Subjects = "*",
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recordings: episodic (the default), handmade. With --backbone: lp-ft (the default), linear-probe, "
            "cached-features, gradual, freezeout, full, scratch."
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Pre-trained encoder: package:efficientnet-lite0, package:minilm-l6, timm:NAME, hf:ID, …"),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(help="Of a table of several parts the one to train on: texts, or paths from the table's folder."),
    ] = None,
    personal: Annotated[
        int,
        typer.Option(min=2, max=512, help="Features that personal heads are fitted in, of a backbone given by name."),
    ] = 128,
    cache: Annotated[
        Path | None, typer.Option(help="Folder in which features are kept, so that the next run need not compute them.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Most gradient steps of one network (recordings 2500, else 200).")
    ] = None,
    unit: Annotated[
        str, typer.Option(help="Unit of the samples, for the model card: 'mV', 'armband counts'.")
    ] = "counts",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the recipe, as dropout=0.2 (docs/recipes.md)."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME=COLUMN",
            help="An output to learn, by the table's column (recordings: array) of its labels or numbers; again for "
            "each. NAME=A,B for several targets; :classification or :regression behind it where both would do.",
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes that share every batch of a network, each with a device of its own.")
    ] = 1,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda or auto: what a network is trained on.")] = "cpu",
    nodes: Annotated[
        int, typer.Option(min=1, help="With --ray: machines that share every batch of a network, --devices on each.")
    ] = 1,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    ray: Annotated[bool, typer.Option("--ray", help="Train the networks of a run side by side as Ray tasks.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, as auto or ray://host:10001; without it one is started here.")
    ] = None,
    logger: Annotated[list[str] | None, typer.Option(help="Keep logs, too: csv, tensorboard, mlflow.")] = None,
    quick: Annotated[bool, typer.Option(help="A small budget: minutes become seconds, for demos and tests.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = False,
    seed: Seed = 0,
) -> None:
    """Train a backbone and its prior on recordings; or fine-tune a pre-trained one on images, texts, sounds.

    For the latter --data is FOLDER/<label>/*, FOLDER/<user>/<label>/*, or a table with columns text and label. With
    --task it is a table with a column text, or file, and a column for each task, whose cells may be empty. Further
    tasks of recordings are arrays beside their labels (docs/recordings.md).
    """
    from service.commands.probing import media_recipes, run_probe
    from service.commands.training import run_training, where_of

    where = where_of(
        devices, accelerator, precision, nodes=nodes, ray=ray, ray_address=ray_address, loggers=logger or ()
    )
    if ray or ray_address:  # whose processes were started elsewhere
        data, out = data.absolute(), out.absolute()
    if backbone is not None or recipe in media_recipes():
        run_probe(
            data,
            out,
            column=column,
            recipe=recipe,
            backbone=backbone,
            personal=personal,
            cache=cache,
            steps=steps,
            settings=settings or (),
            tasks=task or (),
            resume=resume,
            seed=seed,
            where=where,
            command=command_line(),
        )
        return
    if column is not None:
        raise typer.BadParameter("--column is of a table, which needs --backbone")
    run_training(
        data,
        out,
        subjects=subjects,
        recipe=recipe or "episodic",
        steps=steps,
        unit=unit,
        quick=quick,
        resume=resume,
        seed=seed,
        settings=settings or (),
        tasks=task or (),
        where=where,
        command=command_line(),
    )


@app.command()
def extract(
    data: MediaDir,
    out: Annotated[Path, typer.Option("--out", help="File to write, .npz.")],
    model: Annotated[Path | None, typer.Option("--model", help="Bundle: DIR/NAME or DIR/NAME/VERSION.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Or a pre-trained encoder by name.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Compute blocks side by side as Ray tasks.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster, as auto or ray://host:10001; without it one is started here.")
    ] = None,
) -> None:
    """Compute the features of images, sounds or texts, by what is served or by an encoder, into one file."""
    from service.commands.extraction import run_extract

    if ray or ray_address:  # whose processes were started elsewhere
        data, model = data.absolute(), model and model.absolute()
    run_extract(data, out, model=model, backbone=backbone, ray=ray, ray_address=ray_address, command=command_line())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder that `headway train` wrote.")],
    models: Annotated[Path, typer.Option("--models", help="Folder of bundles to export into.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; by default the run's folder name.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest and the card.")] = "Apache-2.0",
    citation: Annotated[str, typer.Option(help="What to cite, for the card.")] = "",
    description: Annotated[str, typer.Option(help="One sentence, for the card.")] = "",
    user_labels: Annotated[
        int, typer.Option(min=0, max=256, help="Labels of their own that a user may add; 0: a closed set.")
    ] = 0,
    latency_ms: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Take the most accurate of fp32, fp16 and int8 that answers in so many milliseconds (median) here.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="With --latency-ms: cpu or cuda, of this machine.")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, max=4096, help="With --latency-ms: rows of the call it holds for.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="With --latency-ms: of a call; 0: as many as cores.")] = 1,
    judging: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="With --latency-ms: recordings, files or texts that the variants are judged on; of several outputs "
            "OUTPUT=DIR for each.",
        ),
    ] = None,
    held_out: Annotated[
        str, typer.Option(help="With --data: globs of the people who judge, best ones not trained on.")
    ] = "*",
) -> None:
    """Export a run to an ONNX bundle, through the parity gate; with --latency-ms the variant that is fast enough."""
    from exporters.export import draft_of

    if latency_ms is None and (judging or held_out != "*"):
        raise typer.BadParameter("--data and --held-out judge variants: give --latency-ms too")
    draft = draft_of(
        run,
        models,
        name=name,
        licence=licence,
        citation=citation,
        description=description,
        user_labels=user_labels,
    )
    if latency_ms is None:
        path = draft.written(models)
    else:
        from exporters.variants import Bound
        from service.commands.exporting import run_export_within

        bound = Bound(latency_ms, device, batch, threads)
        path = run_export_within(draft, models, bound, data=judging or (), held_out=held_out, console=console)
    parity = draft.manifest.parity
    console.print(
        f"parity on {parity['windows']} real windows, batches {parity['batches']}: "
        f"largest error {parity['max_error']:.1e} (allowed {parity['tolerance']:.0e})\nwritten to {path}",
        highlight=False,
    )


@app.command()
def bridge(
    old: Annotated[Path, typer.Option("--from", help="Bundle whose users move: DIR/NAME or DIR/NAME/VERSION.")],
    new: Annotated[Path, typer.Option("--to", help="Bundle they move to; the next version of it gets the bridge.")],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Folder of recordings; of several outputs OUTPUT=DIR, for each that is to move."),
    ],
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder of bundles to write into; by default that of --to.")
    ] = None,
    subjects: Subjects = "*",
) -> None:
    """Fit a bridge between two backbones on the population, so that heads survive an upgrade (docs/upgrades.md)."""
    from service.commands.bridging import run_bridge

    console.print(run_bridge(old, new, data, models, subjects), highlight=False)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Bundle: DIR/NAME or DIR/NAME/VERSION.")],
    data: DataDir,
    subjects: Annotated[str | None, typer.Option("--subjects", help="Globs of the subjects to score.")] = None,
    population: Annotated[
        str | None, typer.Option("--population", help="Globs of the population, for baselines that need one.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="myo or cycles (docs/evaluation.md).")] = "cycles",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown.")] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Append the run to a log, so that runs are counted.")
    ] = None,
    via: Annotated[
        str, typer.Option(help="local, or http: the same calibrations through a running service.")
    ] = "local",
    url: Annotated[
        str | None, typer.Option("--url", help="Service for --via http; without it one is started here.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Score the closed-form baselines too.")] = True,
    trained_baselines: Annotated[
        bool, typer.Option("--trained-baselines", help="Also train from scratch and fine-tune per user (slow).")
    ] = False,
    run: Annotated[Path | None, typer.Option("--run", help="Training run, for the fine-tuning baseline.")] = None,
    allow_training_subjects: Annotated[
        bool, typer.Option("--allow-training-subjects", help="Score subjects that the model was trained on.")
    ] = False,
    methods: Annotated[
        str, typer.Option(help="Of personal heads, with commas between: map,ncm,lda,ridge,logistic,auto.")
    ] = "map",
    track: Annotated[
        str, typer.Option(help="inductive, or causal or batch: what windows without labels add (docs/evaluation.md).")
    ] = "inductive",
) -> None:
    """Score a bundle: generic, baselines and the personal head, by labelled windows."""
    from service.commands.evaluation import run_evaluation

    run_evaluation(
        model,
        data,
        subjects=subjects,
        population=population,
        protocol=protocol,
        json_file=json_file,
        markdown=markdown,
        log=log,
        via=via,
        url=url,
        baselines=baselines,
        trained_baselines=trained_baselines,
        run=run,
        allow_training_subjects=allow_training_subjects,
        command=command_line(),
        methods=methods,
        track=track,
    )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder that `headway train` wrote.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="What it was trained on, for confusion, bars and maps of what is left out of it."),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="What `headway evaluate --json` wrote of the exported bundle.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; by default RUN/report.html.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of features kept by `headway train --cache`, of images, texts, sounds.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Of a run of several tasks, the one to write of.")] = None,
) -> None:
    """Write one HTML page about a run: curves, accuracy by labelled windows, users, confusion, map, timings."""
    from service.commands.report import run_report

    run_report(run, data=data, evaluation=evaluation, out=out, cache=cache, task=task)
