"""The layers of an encoder as groups of parameters, from the input on: what recipes freeze and let learn."""

from bisect import bisect_left
from collections.abc import Iterator

from torch import nn

from models.backbones.module import EncoderModule

__all__ = ["layer_groups"]


def layer_groups(encoder: EncoderModule) -> dict[str, tuple[str, ...]]:
    """Names of modules and parameters by the encoder's taps, from the input on.

    A group has all that was registered since the tap before: so an embedding goes with the first block; and what comes
    behind the last tap goes with it. Empty for an encoder without parameters, as an ONNX file's.
    """
    order = [name for name, _ in encoder.named_parameters()]
    taps: list[str] = []
    ends: list[int] = []
    for tap in encoder.taps:
        inside = [i for i, name in enumerate(order) if name.startswith(f"network.{tap}.")]
        if inside and (not ends or inside[-1] > ends[-1]):
            taps.append(tap)
            ends.append(inside[-1])
    if not taps:
        return {}
    group = {name: min(bisect_left(ends, i), len(ends) - 1) for i, name in enumerate(order)}
    found: list[list[str]] = [[] for _ in taps]
    for number, name in _cover(encoder, "", group):
        found[number].append(name)
    return {tap: tuple(names) for tap, names in zip(taps, found, strict=True)}


def _cover(module: nn.Module, name: str, group: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Give the largest modules that are of one group, and the parameters that are in none of them."""
    inside = {group[f"{name}.{n}" if name else n] for n, _ in module.named_parameters()}
    if len(inside) == 1:
        yield inside.pop(), name
        return
    for n, _ in module.named_parameters(recurse=False):
        full = f"{name}.{n}" if name else n
        yield group[full], full
    for n, child in module.named_children():
        yield from _cover(child, f"{name}.{n}" if name else n, group)
