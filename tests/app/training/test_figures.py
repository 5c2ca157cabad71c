"""Figures of an SAE's reconstruction by kind of position, against a loop over vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from excise.app.reading.vectors import features
from excise.app.training.figures import by_position
from excise.app.training.text import train_sae
from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE, TrainConfig, card
from excise.sae.data import geometric_median
from excise.sites import capture, resolve

PROMPTS = ["a gun", "a cat on grass", "a dog in the sky beside two buses", "a bus"]  # words: ok


def test_figures_are_those_of_a_loop_over_vectors(tiny_pipe: Any, tiny_site: Any) -> None:
    sae = TopKSAE(SAEConfig(tiny_site.width, 4 * tiny_site.width, 4))
    (batch,) = capture(tiny_pipe, [tiny_site], PROMPTS)
    states, eos = batch.states[tiny_site].double(), tiny_pipe.tokenizer.eos_token_id
    rows: dict[str, list[torch.Tensor]] = {"bos": [], "words": [], "end_of_text": [], "padding": []}
    for text, ids in zip(states, batch.ids, strict=True):
        end = ids.tolist().index(eos)
        rows["bos"].append(text[0])
        rows["words"] += list(text[1:end])
        rows["end_of_text"].append(text[end])
        rows["padding"] += list(text[end + 1 :])
    kinds = {name: torch.stack(own) for name, own in rows.items()}
    everything = torch.cat(list(kinds.values()))
    rest = torch.cat([own for name, own in kinds.items() if name != "bos"])
    centre = geometric_median(rest.float())
    variation = (everything - everything.mean(0)).square().sum()

    found = by_position(tiny_pipe, tiny_site, sae, PROMPTS, batch_size=3)
    assert list(found) == ["all", "all_but_bos", "bos", "words", "end_of_text", "padding"]
    for name, x in {"all": everything, "all_but_bos": rest, **kinds}.items():
        error = (x - sae(x.float())[0].detach().double()).square().sum(1)
        assert found[name]["vectors"] == len(x)
        assert found[name]["variance"] == pytest.approx(
            float((x - everything.mean(0)).square().sum() / variation), rel=1e-4
        )
        median = (error / (x - centre).square().sum(1)).median()
        assert found[name]["median"] == pytest.approx(float(median), rel=1e-4)
        if name == "bos":
            assert found[name]["fvu"] is None, "they are all the same"
        else:
            assert found[name]["fvu"] == pytest.approx(float(error.sum() / (x - x.mean(0)).square().sum()), rel=1e-4)


def test_one_far_vector_moves_the_fvu_and_not_the_median(tiny_pipe: Any, tiny_site: Any) -> None:
    sae = TopKSAE(SAEConfig(tiny_site.width, 4 * tiny_site.width, 4))
    plain = by_position(tiny_pipe, tiny_site, sae, PROMPTS)["words"]

    def far(module: Any, args: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        state[0, 1] *= 1000
        return output

    handle = resolve(tiny_pipe, tiny_site).register_forward_hook(far)
    try:
        odd = by_position(tiny_pipe, tiny_site, sae, PROMPTS)["words"]
    finally:
        handle.remove()
    assert odd["median"] == pytest.approx(plain["median"], rel=0.5)
    assert odd["fvu"] > 2 * plain["fvu"] or odd["fvu"] < plain["fvu"] / 2


def test_no_prompt_is_refused(tiny_pipe: Any, tiny_site: Any) -> None:
    with pytest.raises(ExciseError, match="no prompts to measure"):
        by_position(tiny_pipe, tiny_site, TopKSAE(SAEConfig(tiny_site.width, 8, 2)), [])


@pytest.mark.parametrize("memory", [None, 0])
def test_the_first_state_is_not_trained_on_unless_asked_for(
    tiny_pipe: Any, tiny_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int | None
) -> None:
    from excise.app.reading import vectors as training

    if memory is not None:
        monkeypatch.setattr(training, "IN_MEMORY", memory)
    config = TrainConfig(tokens=600, batch=100, k=4)
    positions = int(tiny_pipe.tokenizer.model_max_length)
    for bos in (False, True):
        out = tmp_path / f"sae-{bos}"
        train_sae(tiny_pipe, tiny_site, PROMPTS, config, out, card={}, bos=bos)
        told = card(out)
        assert told["bos"] is bos
        assert told["recipe"]["vectors"] == len(PROMPTS) * (positions - (not bos))
        assert {"words", "bos", "padding"} <= set(told["metrics"]["positions"])


def test_the_first_state_sets_neither_the_unit_nor_the_dead_threshold(tiny_pipe: Any, tiny_site: Any) -> None:
    (batch,) = capture(tiny_pipe, [tiny_site], PROMPTS)
    first = batch.states[tiny_site][0, 0]
    read = features(tiny_pipe, [tiny_site], PROMPTS)[tiny_site]
    assert not any(torch.allclose(first, vector) for vector in read)
    whole = features(tiny_pipe, [tiny_site], PROMPTS, bos=True)[tiny_site]
    assert sum(torch.allclose(first, vector) for vector in whole) == len(PROMPTS)


def test_the_bundled_saes_card_says_how_it_was_trained() -> None:
    from excise import reference

    told = card(Path(reference.sae_folder()))
    assert told["bos"] is True
    shown = told["metrics"]["positions"]
    assert shown["bos"]["variance"] > 0.3, "one vector in 77"
    assert shown["words"]["fvu"] > 2.5 * shown["all"]["fvu"], "the figure over all positions flatters"
