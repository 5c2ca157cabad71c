"""Detection of text that mentions minors, so that it is neither used to generate pictures nor written."""

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
    """Return whether the text mentions a minor or an age below 18. Errs on the side of finding one."""
    return _MINORS.search(text) is not None
