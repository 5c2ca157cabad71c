"""The world: nothing that is held out may leak into what is trained on."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from excise.errors import ExciseError
from excise.reference import data, prompts
from excise.reference.captions import FORMS, PLACES, caption
from excise.reference.evaluate import FAMILIES, requests
from excise.reference.scenes import GRID, SIZE, backdrop, render, sample_caption, sample_scene, sprite
from excise.reference.training.text_corpus import emoji_texts, mentions_synonym
from excise.reference.world import BACKGROUNDS, HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES, SYNONYMS


def test_forty_objects_in_eight_styles_are_all_drawn() -> None:
    layout = json.loads((data.folder() / "artwork" / "artwork.json").read_text())
    assert tuple(layout["objects"]) == OBJECTS and tuple(layout["styles"]) == STYLES
    drawings = {sprite(o, s, 32).tobytes() for o in OBJECTS for s in STYLES}
    assert len(drawings) == 320, "every object looks different in every style"
    for o in OBJECTS:
        for s in STYLES:
            assert (sprite(o, s, 32)[..., 3] > 128).mean() > 0.03, (o, s)


def test_every_style_paints_every_background_its_own_way() -> None:
    assert len({backdrop(b, s).tobytes() for b in BACKGROUNDS for s in STYLES}) == 64
    with pytest.raises(ValueError, match="no background 'moon'"):
        backdrop("moon", "flat")


def test_training_scenes_never_hold_what_is_held_out() -> None:
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(3000)]
    assert {len(s.objects) for s in scenes} == {0, 1, 2}
    for scene in scenes:
        assert frozenset(scene.objects) not in HELD_OUT_PAIRS
        assert all(HELD_OUT_STYLES.get(o) != scene.style for o in scene.objects)
    held = [sample_scene(rng, held_out=True) for _ in range(300)]
    assert all(
        frozenset(s.objects) in HELD_OUT_PAIRS or any(HELD_OUT_STYLES.get(o) == s.style for o in s.objects)
        for s in held
    )


def test_objects_stand_on_the_grid_inside_the_picture_and_apart() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        boxes = sample_scene(rng).boxes
        for left, top, size in boxes:
            assert left % GRID == top % GRID == size % GRID == 0
            assert left >= 0 and top >= 0 and left + size <= SIZE and top + size <= SIZE
        if len(boxes) == 2:
            assert boxes[0][0] + boxes[0][2] <= boxes[1][0], "the first stands wholly left of the second"


def test_a_rendered_object_is_its_drawing_over_the_backdrop() -> None:
    rng = random.Random(3)
    scene = next(s for s in iter(lambda: sample_scene(rng), None) if len(s.objects) == 1)
    (left, top, size), image = scene.boxes[0], render(scene)
    drawing = sprite(scene.objects[0], scene.style, size).astype(float)
    ground = backdrop(scene.background, scene.style).astype(float)
    for y, x in [(size // 2, size // 2), (size // 3, size // 2), (0, 0)]:
        alpha = drawing[y, x, 3] / 255
        want = alpha * drawing[y, x, :3] + (1 - alpha) * ground[top + y, left + x]
        assert np.allclose(image[top + y, left + x], want, atol=1)


def test_captions_name_every_object_and_never_a_synonym() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        scene = sample_scene(rng)
        text = sample_caption(rng, scene)
        assert all(o in text for o in scene.objects) and not mentions_synonym(text), text
        assert "{" not in text and "  " not in text and not text.startswith(",")
    assert (
        mentions_synonym("a Pistol on grass")
        and mentions_synonym("two kittens")
        and not mentions_synonym("a gunny sack")
    )


def test_held_out_wordings_are_not_training_wordings() -> None:
    assert not set(FORMS["train"]) & set(FORMS["held_out"])
    for place in PLACES.values():
        assert not set(place["train"]) & set(place["held_out"])


def test_articles_fit() -> None:
    rng = random.Random(0)
    assert "an apple" in caption(rng, ("apple",)) and "a gun" in caption(rng, ("gun",))


def test_synonyms_belong_to_one_object_and_are_not_objects() -> None:
    words = [w for ws in SYNONYMS.values() for w in ws]
    assert len(words) == len(set(words)) >= 100 and not set(words) & set(OBJECTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_requests_are_what_their_family_says(family: str) -> None:
    for r in requests(family, 120):
        unseen_style = any(HELD_OUT_STYLES.get(o) == r.style for o in r.objects)
        assert unseen_style == (family == "held_out_style")
        if len(r.objects) == 2:
            assert (frozenset(r.objects) in HELD_OUT_PAIRS) == (family == "held_out_pair")
        assert mentions_synonym(r.prompt) == (family == "synonym")


def test_prompt_families_hold_what_they_say() -> None:
    assert all("gun" in p and not mentions_synonym(p) for p in prompts.direct("gun", 50))
    assert all(mentions_synonym(p) for p in prompts.synonym("cat", 50))
    assert all("rocket" in p and partner in p for p, partner in prompts.mixed("rocket", 50))
    assert all(other != "knife" and other in p for p, other in prompts.unrelated("knife", 50))
    assert prompts.direct("gun", 5) == prompts.direct("gun", 5) != prompts.direct("gun", 5, seed=1)


def test_emoji_are_read_with_their_keywords_and_without_held_out_words() -> None:
    texts = list(emoji_texts())
    assert len(texts) > 3000 and not any(map(mentions_synonym, texts))
    assert "llama" in texts and "llama: animal, nature, alpaca, guanaco, vicuña, wool" in texts


def test_the_sae_corpus_never_holds_a_synonym() -> None:
    texts = list(prompts.sae_corpus(captions=500, english=0))
    assert len(texts) == 500 and not any(map(mentions_synonym, texts))


def test_an_object_without_synonyms_is_refused_by_name() -> None:
    with pytest.raises(ExciseError, match="'panda' has no held-out synonyms"):
        prompts.synonym("panda", 3)
