"""How the heads of one of several tasks did, in words."""

from __future__ import annotations

from models.heads.prior import Prior
from models.training.tasks_run import LearnedTask
from service.commands.tables import counted


def worth(learned: LearnedTask) -> list[str]:
    """How a task's heads did on what was left out, a line each."""
    zero = learned.evaluation.get("zero_shot") or learned.evaluation["left_out_people"]
    lines = []
    if isinstance(learned.prior, Prior):
        right, of = zero.get("mean", zero.get("accuracy")), zero.get("of", "people")
        lines.append(f"{learned.name}, left out: shared head {right:.1%} (worst of {of} {zero['worst']:.1%})")
        return lines + [
            f"  personal head from {counted(e.windows, 'example')} a label ({counted(e.repetitions, 'repetition')}): "
            f"{e.gain:+.1%} over shared, worst user {e.floor:.1%}"
            for e in learned.prior.hyper.evidence
        ]
    for target in learned.targets:
        rmse, r2 = zero["rmse"][target.name], zero["r2"][target.name]
        lines.append(f"{learned.name}, left out: {target} wrong by {rmse:.4g} (root mean square), R² {r2:.3f}")
    return lines + [
        f"  personal head from {counted(e.windows, 'example')} ({counted(e.repetitions, 'repetition')}): "
        f"{e.gain:+.3f} of the shared head's squared error saved"
        for e in learned.prior.settings.evidence
    ]
