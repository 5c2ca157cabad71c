from __future__ import annotations

import pytest

from excise.app.models.knowing import explain_unsplit, not_known, parts, refuse_not_known, refuse_unknown
from excise.concepts import Concept, builtin, names
from excise.concepts.library import described
from excise.errors import WeakEraserError
from excise.reference.world import OBJECTS, STYLES


def test_what_the_bundled_model_draws_is_erased_and_what_it_does_not_is_refused() -> None:
    assert [name for name in (*OBJECTS, *STYLES) if refuse_not_known(builtin(name, 5))] == []
    assert not_known(Concept("arms", ("gun", "sniper rifle", "Pistols", "halberd"))) == ["halberd"]
    for words in (("submarine",), ("halberd", "mace"), ("молоток",)):
        with pytest.raises(WeakEraserError, match=f"does not know {words[0]}.*nothing to erase"):
            refuse_not_known(Concept("it", words))


def test_a_name_of_nothing_that_the_model_draws_is_told_so_and_a_mistyped_one_is_named() -> None:
    with pytest.raises(WeakEraserError, match="does not know submarine: nothing to erase; it knows"):
        refuse_unknown("submarine")
    with pytest.raises(WeakEraserError, match=r"does not know gnu: nothing to erase; did you mean gun\?"):
        refuse_unknown("gnu")
    for name in ("gun", "nudity", "paper-gun", "golden pistol"):
        refuse_unknown(name)


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("gun,knife", ["gun", "knife"]),
        (" gun , ice cream,", ["gun", "ice cream"]),
        ("gun", None),
        ("the look of old photographs, faded and brown", None),
        ("gun,foo", None),
        (",", None),
    ],
)
def test_a_text_is_several_concepts_only_where_each_is_known(text: str, several: list[str] | None) -> None:
    assert parts(text) == several


def test_a_text_that_is_only_partly_known_is_explained() -> None:
    assert "'foo' is not a built-in one" in str(explain_unsplit("gun,foo"))
    assert explain_unsplit("old, faded") is None
    assert explain_unsplit("gun,knife") is None


def test_every_known_concept_is_described() -> None:
    rows = [described(name) for name in names()]
    assert len(rows) == 66
    assert {row["kind"] for row in rows} == {"object", "style", "attribute"}
    assert [row["name"] for row in rows if row["for"] == "the bundled model"] == [*OBJECTS, *STYLES]
    assert all(row["mentions"] for row in rows)
