"""Telling text that names minors, so that it is neither drawn nor written."""

from __future__ import annotations

import re

_MINORS = re.compile(
    r"\b(child(ren|like|hood)?|kid(s|dy|do)?|minors?|underage[d]?|toddlers?|bab(y|ies)|infants?|newborns?|preschool\w*|"
    r"schoolgirls?|schoolboys?|girls?|boys?|teen(s|ager|agers|aged?)?|preteens?|tweens?|adolescents?|juveniles?|"
    r"youngsters?|pupils?|lolis?|shotas?|lolita\w*|daughters?|sons?|little (sister|brother)s?)\b"
    r"|\b(1[0-7]|[1-9])\s*(-|\s)?\s*(y\.?o\.?|y/o|yrs?|years?)\b",
    re.IGNORECASE,
)


def names_minors(text: str) -> bool:
    """Whether the text names a minor or an age below 18. It would rather find one too many."""
    return _MINORS.search(text) is not None
