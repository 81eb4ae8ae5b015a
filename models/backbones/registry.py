"""Names of backbones, so that a configuration file or a flag can ask for one: `name`, or `family:name`."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["BackboneError", "create", "families", "names", "register", "register_family"]

Factory = Callable[..., nn.Module]
_FACTORIES: dict[str, Factory] = {}
_FAMILIES: dict[str, Factory] = {}


class BackboneError(ValueError):
    """A backbone was asked for that is not known or not installed, or with settings that it does not take."""


def register(name: str) -> Callable[[Factory], Factory]:
    """Decorate a factory of backbones (keyword settings to module) to make it known as `name`."""
    return _adder(_FACTORIES, name)


def register_family(family: str) -> Callable[[Factory], Factory]:
    """Decorate a factory of backbones (name, keyword settings to module) to make all `family:name` known."""
    return _adder(_FAMILIES, family)


def _adder(known: dict[str, Factory], name: str) -> Callable[[Factory], Factory]:
    def add(factory: Factory) -> Factory:
        """Note the factory, and give it back unchanged."""
        if name in known:
            raise BackboneError(f"A backbone named '{name}' is registered already.")
        known[name] = factory
        return factory

    return add


def names() -> tuple[str, ...]:
    """The names that `create` knows, sorted, without those of families."""
    return tuple(sorted(_FACTORIES))


def families() -> tuple[str, ...]:
    """The families that `create` knows, sorted; their backbones are called `family:name`."""
    return tuple(sorted(_FAMILIES))


def create(name: str, cfg: Mapping[str, Any] | None = None, **settings: Any) -> nn.Module:
    """Build a backbone by name; `settings` override `cfg`.

    Raises `BackboneError` for an unknown name (lists the known ones) or settings that do not fit.
    """
    family, colon, member = name.partition(":")
    given = {**(cfg or {}), **settings}
    try:
        if colon and family in _FAMILIES:
            return _FAMILIES[family](member, **given)
        if name in _FACTORIES:
            return _FACTORIES[name](**given)
    except BackboneError:
        raise
    except (TypeError, ValueError) as error:
        raise BackboneError(f"The backbone '{name}' cannot be built so: {error}") from error
    known = [*names(), *(f"{f}:…" for f in families())]
    raise BackboneError(f"There is no backbone named '{name}'; there are: {', '.join(known)}.")
