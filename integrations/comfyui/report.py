"""What a CLIP's erasers did, as text."""

from __future__ import annotations

from typing import Any

from excise.errors import one_line

from .injection import KEY, Injection


def report(clip: Any) -> str:
    """Return a line for each eraser of a CLIP: its concept, digest, strength, and in how many prompts it fired."""
    injection = clip.patcher.get_attachment(KEY)
    if not isinstance(injection, Injection) or not injection.items:
        return "This CLIP has no eraser."
    lines = []
    for each in injection.items:
        eraser, counts = each.eraser, injection.counts[each.eraser.digest]
        made_for = eraser.made_for.get("model") or eraser.made_for.get("pipeline", "an unknown model")
        lines.append(
            one_line(
                f"{eraser.name} ({eraser.concept}, {eraser.method}): strength {each.strength:g}, "
                f"{'strict' if each.strict else 'not strict'}, made for {made_for}, fired in {counts.fired} of "
                f"{counts.prompts} prompts, changed {counts.states} states; digest {eraser.digest}"
            )
        )
    return "\n".join(lines)
