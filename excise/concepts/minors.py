"""Detection of text that mentions minors, so that it is neither used to generate pictures nor written."""

from __future__ import annotations

import re

_TEENS = "thirteen|fourteen|fifteen|sixteen|seventeen"
_SPELLED = f"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|{_TEENS}"
_MINORS = re.compile(
    r"\b((school|grand|step|god|foster[- ])?child(ren|like|hood)?|kid(s|dy|do)?|minors?|underage[d]?|toddlers?|"
    r"bab(y|ies)|infants?|newborns?|preschool\w*|schoolgirls?|schoolboys?|girls?|boys?|teen(s|ager|agers|aged?)?|"
    r"preteens?|tweens?|adolescents?|juveniles?|youngsters?|pupils?|lolis?|shotas?|lolita\w*|"
    r"(grand|step|god)?daughters?|"
    r"(grand|step|god)?sons?|nieces?|nephews?|little (sister|brother)s?|orphans?|foundlings?|waifs?|urchins?|tots|"
    r"(wee|tiny|little) tot|tykes?|brats?|kindergarte?ners?|(first|second|third|fourth|fifth|sixth|seventh|eighth)"
    r"[- ]graders?)\b"
    r"|\b(1[0-7]|[1-9])\s*(-|\s)?\s*(y\.?o\.?|y/o|yrs?|years?)\b"
    rf"|\b({_SPELLED})[-\s]+years?[-\s]+(olds?|of[-\s]age)\b|\b(barely|just|only|young as) ({_TEENS}|1[3-7])\b"
    rf"|\baged? ({_SPELLED}|1[0-7]|[1-9])\b",
    re.IGNORECASE,
)
_OTHERWISE = re.compile(
    r"\bbaby[- ](blue|pink)\b(?!\W+eye)|\bbaby grand\b|\bkid[- ](gloves?|leather)\b|\b(ursa|asia) minor\b|"
    r"\bminor (keys?|chords?|scales?|leagues?|planets?|injur(y|ies)|roads?|details?)\b",
    re.IGNORECASE,
)
"""Phrases in which a word above means something else."""


def names_minors(text: str) -> bool:
    """Return whether the text mentions a minor or an age below 18. Errs on the side of finding one."""
    return _MINORS.search(_OTHERWISE.sub(" ", text)) is not None
