"""Answers of models with several outputs.

In `infer` plain names are the first output's, so that whoever asked for it alone before there were others is answered
as before; `NAME.label` is the tensor `label` of the output NAME, the first one's too. In `predict` the first output's
answer stands as it would alone, and `outputs` has every output's by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from exporters.bundle import Manifest
from service import answers
from service.answers import OFFERS, PER_ROW_OUTPUTS, Headers, Heads, Offer
from service.call import Encode
from service.engine.jobs import Result
from service.errors import InvalidRequest
from service.loaded import LoadedModel
from service.output_heads import by_output
from service.protocol.oip import InferRequest, RequestedOutput
from service.protocol.parameters import Parameters
from service.protocol.tensors import Tensor

COMMON = ("features", "model_version")
"""Tensors that are of no output."""
ONE_ONLY = ("head_version", "threshold", "coverage", "feedback")
"""Parameters that are about one output."""


def offer_of(manifest: Manifest) -> Offer:
    """Return what a model with several outputs answers."""
    alone = {name: OFFERS[manifest.of_output(name).task] for name in manifest.names}
    first = alone[manifest.output]
    usual = [*first.usual]
    named = list[str]()
    for name, offer in alone.items():
        named += [f"{name}.{tensor}" for tensor in offer.outputs if tensor not in COMMON]
        if name != manifest.output:
            usual += [output._replace(name=f"{name}.{output.name}") for output in offer.usual]
    return Offer(tuple(usual), (*first.outputs, *named), True, predicted, alone)


def parts_of(model: LoadedModel, result: Result, heads: Heads) -> dict[str, tuple[LoadedModel, Result, Heads]]:
    """Return for each output the model of it alone, what came of the rows in it, and the heads of its rows."""
    found, at = {}, 0
    for output, own in zip(model.outputs, by_output(model, heads), strict=True):
        scores = None if result.scores is None else result.scores[:, at : at + 2 * output.columns]
        advised = tuple(name for name in result.advised if name == output.output)
        own_result = replace(result, features=output.taken(result.features), scores=scores, advised=advised)
        found[output.output] = output, own_result, own
        at += 2 * output.columns
    return found


def wanted_outputs(message: InferRequest, per_row: bool, offer: Offer) -> tuple[RequestedOutput, ...]:
    """Return the tensors that an `infer` asks for: those it lists, the usual ones of `task`, or those of all outputs.

    Raises:
        InvalidRequest: there is no such tensor or output, or both are named.
    """
    task, listed = message.parameters.task, message.outputs is not None
    if task is not None and listed:
        raise InvalidRequest("name tensors under outputs, or one output by the parameter task, not both")
    outputs = answers.wanted(message, False, offer)
    if listed:
        return outputs
    first = next(iter(offer.of))
    names = tuple(offer.of) if task is None else (task,)
    binary = message.binary_output
    chosen = [o for o in outputs if (o.name.rpartition(".")[0] or first) in names]
    if task not in (None, first):
        # What a parameter adds to the usual tensors has the plain name: here it is of another output.
        chosen += [o._replace(name=f"{task}.{o.name}") for o in outputs if o.name in answers.DECIDED_OUTPUTS]
    if per_row:
        who = [o._replace(binary=binary) for o in PER_ROW_OUTPUTS]
        for name in names:
            chosen += [o._replace(name=o.name if name == first else f"{name}.{o.name}") for o in who[:-1]]
        chosen.append(who[-1])
    return tuple(chosen)


def named_in(outputs: Sequence[RequestedOutput], offer: Offer) -> tuple[str, ...]:
    """Return the outputs whose tensors are asked for, in the model's order."""
    first = next(iter(offer.of))
    found = {o.name.rpartition(".")[0] or first for o in outputs if o.name not in COMMON}
    return tuple(name for name in offer.of if name in found)


def decided(asked: Parameters, wanted: tuple[str, ...], offer: Offer) -> Parameters | None:
    """Check the parameters of a request for some outputs; returns them where they decide more than labels.

    Raises:
        InvalidRequest: a parameter is about one output and several are asked for, or is not offered there.
    """
    given = [name for name in ONE_ONLY if getattr(asked, name) is not None and getattr(asked, name) is not False]
    if asked.head_version == 0:  # the shared head, which every output has
        given.remove("head_version")
    if given and len(wanted) != 1:
        raise InvalidRequest(f"{given[0]} is about one output: name it by the parameter task, one of {_names(offer)}")
    return offer.of[wanted[0]].decided(asked) if asked.decides else None


def check_task(task: str, offer: Offer) -> None:
    """Refuse the name of an output that is not there.

    Raises:
        InvalidRequest: the model has others, or one without a name.
    """
    if task not in offer.of:
        has = f"it has {_names(offer)}" if offer.of else "its one output has no name: leave task out"
        raise InvalidRequest(f"this model has no output {task[:64]!r}; {has}")


def predicting(asked: Parameters, offer: Offer) -> tuple[Encode, tuple[str, ...]]:
    """Return what answers `predict`, and the outputs that are asked for: one, or (none named) all."""
    if asked.task is None:
        return partial(offer.predictions, decided(asked, tuple(offer.of), offer)), ()
    wanted = (asked.task,)
    alone = offer._replace(predicted=partial(_predicted_of, asked.task))
    return partial(alone.predictions, decided(asked, wanted, offer)), wanted


def _names(offer: Offer) -> str:
    return ", ".join(offer.of)


def inference(
    request_id: str,
    outputs: tuple[RequestedOutput, ...],
    per_row: bool,
    wanted: tuple[str, ...],
    asked: Parameters | None,
    model: LoadedModel,
    result: Result,
    heads: Heads,
) -> tuple[Headers, bytes]:
    """Answer `infer`; `wanted`: the outputs that are asked for."""
    answer: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if request_id:
        answer["id"] = request_id
    found, said = made(outputs, wanted, asked, model, result, heads)
    if heads and not per_row:
        said = {**_who(model, heads, wanted, result.advised), **said}
    if said:
        answer["parameters"] = said
    return answers.encoded(answer, found)


def made(
    outputs: Sequence[RequestedOutput],
    wanted: tuple[str, ...],
    asked: Parameters | None,
    model: LoadedModel,
    result: Result,
    heads: Heads,
) -> tuple[list[tuple[Tensor, bool]], dict[str, Any]]:
    """Make the tensors of `infer`, as `answers.tensors`; `wanted`: the outputs that are asked for.

    Where all are asked for, a version makes those of the outputs that it has.
    """
    if not model.outputs and len(wanted) == 1:  # its one output is the one that is asked for
        found, said = answers.tensors([_plain(o) for o in outputs], asked, model, result, heads)
        return [
            (replace(tensor, name=o.name), binary) for o, (tensor, binary) in zip(outputs, found, strict=True)
        ], said
    there = ("", *(output.output for output in model.outputs))
    outputs = [output for output in outputs if output.name.rpartition(".")[0] in there]
    if not model.outputs:
        return answers.tensors(outputs, asked, model, result, heads)
    return _by_name(outputs, asked, model, result, heads)


def _by_name(
    outputs: Sequence[RequestedOutput], asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads
) -> tuple[list[tuple[Tensor, bool]], dict[str, Any]]:
    """Make the tensors that outputs of a model say, each by its name."""
    parts, first = parts_of(model, result, heads), model.outputs[0].output
    tensors: dict[str, tuple[Tensor, bool]] = {}
    said: dict[str, Any] = {}
    of_output: dict[str, list[RequestedOutput]] = {}
    for output in outputs:
        if output.name == "features":
            tensors[output.name] = Tensor(output.name, "FP32", result.features), output.binary
        else:
            of_output.setdefault(output.name.rpartition(".")[0] or first, []).append(output)
    for name, own in of_output.items():
        found, more = answers.tensors([_plain(o) for o in own], asked, *parts[name])
        said |= more
        for output, (tensor, binary) in zip(own, found, strict=True):
            tensors[output.name] = replace(tensor, name=output.name), binary
    return [tensors[output.name] for output in outputs], said


def _plain(output: RequestedOutput) -> RequestedOutput:
    """Return what a tensor is called in a model of its output alone."""
    return output._replace(name=output.name.rpartition(".")[2])


def _who(model: LoadedModel, heads: Heads, wanted: tuple[str, ...], advised: tuple[str, ...]) -> dict[str, Any]:
    """Who answered, of each output that is asked for, and whether a calibration is advised there."""
    said: dict[str, Any] = {}
    for output, own in zip(model.each, by_output(model, heads), strict=True):
        if not output.output or output.output in wanted:
            mark = "" if output is model.each[0] else f"{output.output}."
            said |= {f"{mark}head": own[0].kind, f"{mark}head_version": own[0].version}
            if output.output in advised:
                said[f"{mark}recalibration_advised"] = True
    return said


def predicted(asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads) -> dict[str, Any]:
    """Say what each output has to say, the first one's answer also where it would stand alone."""
    if not model.outputs:
        return OFFERS[model.bundle.manifest.task].predicted(asked, model, result, heads)
    told = {
        name: OFFERS[part[0].bundle.manifest.task].predicted(None, *part)
        for name, part in parts_of(model, result, heads).items()
    }
    whose = ("model", "model_version")
    outputs = {name: {k: v for k, v in said.items() if k not in whose} for name, said in told.items()}
    return {**told[model.outputs[0].output], "outputs": outputs}


def _predicted_of(
    task: str, asked: Parameters | None, model: LoadedModel, result: Result, heads: Heads
) -> dict[str, Any]:
    """Say what one output has to say, as a model of it alone would; or a version that has it alone."""
    if not model.outputs:
        return OFFERS[model.bundle.manifest.task].predicted(asked, model, result, heads)
    part = parts_of(model, result, heads)[task]
    return OFFERS[part[0].bundle.manifest.task].predicted(asked, *part)
