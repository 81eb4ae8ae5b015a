"""Markdown of the guard's benchmark."""

from __future__ import annotations


def of_conditions(rows: list[dict[str, object]], people: int, note: str) -> str:
    """Return the table."""
    lines = [note, ""]
    lines.append(
        "| calibration | condition | below generic, unguarded → guarded (most in a round) | good heads refused "
        "| gain, unguarded → guarded (points) | warned | rightly named |"
    )
    lines.append("|--|--|--|--|--|--|--|")
    lines += [
        f"| {r['calibration']} | {r['condition']} | {r['below_generic_unguarded']:.1f} → {r['below_generic']:.1f} "
        f"({r['below_generic_most']}) of {people} | {r['good_refused']:.1f} | {r['gain_unguarded']:+.2f} → "
        f"{r['gain']:+.2f} | {r['warned']:.0%} | {r['named']:.0%} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def of_parts(rows: list[dict[str, object]], shown: int, draws: int) -> str:
    """Return the table of calibrations that showed some of the labels."""
    lines = [
        f"\n{shown} labels shown, {draws} sets of them a person and round; people by the mean over theirs.\n",
        "| calibration | head | gain on the labels shown (people below generic) | on the others (people below generic) "
        "| worst person | calibrations below generic on the others (by more than a point) |",
        "|--|--|--|--|--|--|",
    ]
    lines += [
        f"| {r['calibration']} | {r['head']} | {r['gain_shown']:+.2f} ({r['below_shown']} of {r['people']}) "
        f"| {r['gain_others']:+.2f} ({r['below_others']}) | {r['worst_others']:+.2f} "
        f"| {r['calibrations_below_others']} of {r['calibrations']} ({r['calibrations_below_others_by_a_point']}) |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"
