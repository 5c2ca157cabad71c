"""Everyday prompts: plain English requests for pictures, in the wordings that people use, about many subjects.

A model's own users write such prompts, so a threshold that is to leave them alone is calibrated on some of them. They
stand in for a sample of the SAE's own corpus, which is better (`excise erase --controls`).
"""

from __future__ import annotations

import random

from excise.errors import ExciseError

_SUBJECTS = (
    "an old fisherman", "a woman in a red coat", "two friends", "a violinist", "a street musician", "a tired nurse",
    "a farmer", "a chess player", "a baker", "a mountain guide", "a bride and groom", "a construction worker",
    "a scientist", "a ballet dancer", "a football team", "a jazz trio", "an astronaut", "a lighthouse keeper",
    "a wooden cabin", "a narrow alley", "a stone bridge", "a medieval castle", "a glass skyscraper", "a small cafe",
    "a railway station", "a crowded market", "an empty library", "a ruined temple", "a futuristic city",
    "a quiet harbour", "a suspension bridge", "a greenhouse", "a cathedral", "a desert road", "a vineyard",
    "a waterfall", "a snowy forest", "a volcano", "a coral reef", "a field of lavender", "a frozen lake",
    "a thunderstorm", "a rocky coast", "a rice terrace", "a sailing boat", "a steam locomotive", "a vintage motorcycle",
    "a red tram", "a hot air balloon", "a wooden canoe", "a school of fish", "a flock of geese", "a sleeping fox",
    "a white owl", "a humpback whale", "a hummingbird", "a herd of elephants", "a butterfly", "a golden retriever",
    "a bowl of ramen", "a slice of lemon tart", "a basket of bread", "a plate of pasta", "a cup of espresso",
    "a jar of honey", "a pile of books", "a typewriter", "a grandfather clock", "a leather armchair", "a vase",
    "a ceramic teapot", "a pair of running shoes", "a vinyl record", "a camera on a tripod", "a robot", "a dragon",
    "a wizard", "a mermaid", "a knight in armour", "a portrait of a king", "a map of an island", "a logo for a bakery",
)  # fmt: skip
_DOINGS = (
    "", "", "", "at work", "waiting for the rain to stop", "seen from above", "reflected in the water",
    "under a street lamp", "in the morning fog", "surrounded by flowers", "covered in snow", "in the rain",
    "beneath the northern lights", "at golden hour", "by candlelight", "with mountains in the background",
    "in front of a blue door", "next to a window", "in an abandoned factory", "on a rooftop", "in a busy kitchen",
    "at the edge of a cliff", "in the middle of the ocean", "on a winter evening", "in autumn leaves",
    "during a parade", "in a botanical garden", "on another planet", "in a tiny apartment", "behind a curtain",
)  # fmt: skip
_WAYS = (
    "", "", "", "a photo of", "a close-up of", "an oil painting of", "a watercolour of", "a pencil sketch of",
    "a low poly render of", "a poster of", "concept art of", "a black and white photograph of", "an aerial view of",
    "a children's book illustration of", "a stained glass window showing", "a wide shot of", "a postcard with",
    "an isometric drawing of", "a still from a film about", "a magazine cover with", "please draw", "i want to see",
)  # fmt: skip
_ENDINGS = (
    "", "", "", "", "35mm film", "highly detailed", "soft light", "dramatic lighting", "trending on artstation",
    "muted colours", "by a dutch master", "shallow depth of field", "8k", "studio lighting", "in 1970s style",
    "vivid colours", "minimalist", "cinematic, volumetric light", "digital painting, sharp focus", "long exposure",
    "award winning photography", "art nouveau", "ukiyo-e", "pastel palette", "very simple, flat design", "bokeh",
)  # fmt: skip


BENIGN = 600
"""Number of everyday prompts for a concept that has no benign prompts of its own; every second one is measured on."""


def everyday(count: int, seed: int = 0) -> list[str]:
    """Return `count` different everyday prompts, the same on every machine.

    Raises ExciseError if there are not so many.
    """
    most = len(_SUBJECTS) * len(set(_DOINGS)) * len(set(_WAYS)) * len(set(_ENDINGS))
    if not 0 <= count <= most // 10:
        raise ExciseError(f"cannot make {count} everyday prompts; ask for 0 to {most // 10}")
    rng, found = random.Random(f"everyday {seed}"), dict[str, None]()
    while len(found) < count:
        way, subject, doing, ending = (rng.choice(words) for words in (_WAYS, _SUBJECTS, _DOINGS, _ENDINGS))
        text = " ".join(filter(None, (way, subject, doing)))
        found.setdefault(f"{text}, {ending}" if ending else text)
    return list(found)
