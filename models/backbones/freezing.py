"""Which part of a backbone may change in training, and that the rest does not."""

from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["FreezePlan", "FrozenChanged"]


class FrozenChanged(RuntimeError):
    """A parameter or statistic that a plan freezes has changed."""


@dataclass(frozen=True)
class FreezePlan:
    """Modules that learn, by prefixes of their names; `()` freezes everything, `("",)` nothing.

    Frozen modules are kept in inference mode: batch-norm statistics stand still and dropout is off there.
    """

    learning: tuple[str, ...] = ()

    def learns(self, name: str) -> bool:
        """Whether the parameter or module of that name learns."""
        return any(not p or name == p or name.startswith(f"{p}.") for p in self.learning)

    def train(self, module: nn.Module) -> list[nn.Parameter]:
        """Put a module into training as planned, and return the parameters for the optimiser.

        Raises:
            ValueError: a prefix names nothing.
        """
        known = {name for name, _ in (*module.named_modules(), *module.named_parameters())}
        lost = [p for p in self.learning if p and p not in known]
        if lost:
            raise ValueError(f"The freeze plan names '{lost[0]}', which the backbone does not have.")
        for name, part in module.named_modules():
            part.training = self.learns(name)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self.learns(name))
        return [p for p in module.parameters() if p.requires_grad]

    def frozen(self, module: nn.Module) -> dict[str, Tensor]:
        """Copies of all frozen parameters and statistics, to compare with later."""
        return {n: v.detach().clone() for n, v in module.state_dict().items() if not self.learns(n)}

    def check(self, module: nn.Module, before: dict[str, Tensor]) -> None:
        """Raise `FrozenChanged` naming the first tensor that is not bit for bit what `frozen` returned."""
        state = module.state_dict()
        for name, value in before.items():
            if not state[name].equal(value):
                raise FrozenChanged(f"'{name}' is frozen and has changed.")
