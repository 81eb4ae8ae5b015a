"""Names of backbones, so that a configuration file or a flag can ask for one."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

__all__ = ["BackboneError", "create", "names", "register"]

Factory = Callable[..., nn.Module]
_FACTORIES: dict[str, Factory] = {}


class BackboneError(ValueError):
    """A backbone was asked for that is not known, or with settings that it does not take."""


def register(name: str) -> Callable[[Factory], Factory]:
    """Decorate a factory of backbones (keyword settings to module) to make it known as `name`."""

    def add(factory: Factory) -> Factory:
        """Note the factory, and give it back unchanged."""
        if name in _FACTORIES:
            raise BackboneError(f"A backbone named '{name}' is registered already.")
        _FACTORIES[name] = factory
        return factory

    return add


def names() -> tuple[str, ...]:
    """The names that `create` knows, sorted."""
    return tuple(sorted(_FACTORIES))


def create(name: str, cfg: Mapping[str, Any] | None = None, **settings: Any) -> nn.Module:
    """Build a backbone by name; `settings` override `cfg`.

    Raises `BackboneError` for an unknown name (lists the known ones) or settings that do not fit.
    """
    if name not in _FACTORIES:
        raise BackboneError(f"There is no backbone named '{name}'; there are: {', '.join(names())}.")
    try:
        return _FACTORIES[name](**{**(cfg or {}), **settings})
    except (TypeError, ValueError) as error:
        raise BackboneError(f"The backbone '{name}' cannot be built so: {error}") from error
