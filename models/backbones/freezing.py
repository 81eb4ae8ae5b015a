"""Which part of a backbone may change in training, and that the rest does not."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["FreezePlan", "FrozenChanged"]


class FrozenChanged(RuntimeError):
    """What a plan freezes has changed, or what it lets learn has been frozen."""


@dataclass(frozen=True)
class FreezePlan:
    """Modules that learn, by prefixes of their names; `()` freezes everything, `("",)` nothing.

    Frozen modules are kept in inference mode: batch-norm statistics stand still and dropout is off there.
    `batch_norm`: whether the statistics of batch norms that learn are estimated anew; by default they stand still too,
    for a handful of examples say less about them than what the backbone was made with.
    """

    learning: tuple[str, ...] = ()
    batch_norm: bool = False

    def learns(self, name: str) -> bool:
        """Whether the parameter or module of that name learns."""
        if "" in self._prefixes:
            return True
        while name not in self._prefixes:
            name, dot, _ = name.rpartition(".")
            if not dot:
                return False
        return True

    @cached_property
    def _prefixes(self) -> frozenset[str]:
        return frozenset(self.learning)

    def train(self, module: nn.Module) -> list[nn.Parameter]:
        """Put a module into training as planned, and return the parameters for the optimiser.

        Raises:
            ValueError: a prefix names nothing.
        """
        known = {name for name, _ in (*module.named_modules(), *module.named_parameters())}
        lost = [p for p in self.learning if p and p not in known]
        if lost:
            raise ValueError(f"The freeze plan names '{lost[0]}', which the backbone does not have.")
        self.set_modes(module)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self.learns(name))
        return [p for p in module.parameters() if p.requires_grad]

    def set_modes(self, module: nn.Module) -> None:
        """Put what learns into training mode, the rest and batch norms that stand still into inference mode."""
        for name, part in module.named_modules():
            part.training = self.learns(name) and (self.batch_norm or not isinstance(part, _NormBase))

    def verify(self, module: nn.Module) -> None:
        """Raise `FrozenChanged` naming the first parameter that was frozen or thawed behind the plan's back."""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad != self.learns(name):
                should = "learns" if self.learns(name) else "is frozen"
                raise FrozenChanged(
                    f"By the freeze plan '{name}' {should}, and its requires_grad was changed after the optimiser was "
                    "built: this has no effect on an optimiser; change the plan."
                )

    def frozen(self, module: nn.Module) -> dict[str, Tensor]:
        """Copies of all frozen parameters and statistics, to compare with later."""
        still = set() if self.batch_norm else _statistics(module)
        kept = module.state_dict().items()
        return {n: v.detach().clone() for n, v in kept if n in still or not self.learns(n)}

    def check(self, module: nn.Module, before: dict[str, Tensor]) -> None:
        """Raise `FrozenChanged` naming the first tensor that is not bit for bit what `frozen` returned."""
        state = module.state_dict()
        for name, value in before.items():
            if not state[name].equal(value):
                raise FrozenChanged(f"'{name}' is frozen and has changed.")


def _statistics(module: nn.Module) -> set[str]:
    """Names of the running statistics of batch norms."""
    norms = ((name, part) for name, part in module.named_modules() if isinstance(part, _NormBase))
    return {f"{name}.{buffer}" if name else buffer for name, part in norms for buffer, _ in part.named_buffers()}
