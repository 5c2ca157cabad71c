"""Receler: adapters, their loss and the learnt prompts by hand, and an eraser as any other."""

from __future__ import annotations

import copy
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.edits.adapters import AdapterEdit
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.trained import RecelerConfig
from excise.methods.trained.receler import Adapted, Task, outside
from excise.methods.trained.sampling import frozen_unet
from excise.methods.trained.trainer import watch_training
from excise.sites import Site
from tests import tiny

CONCEPT = Concept("gun", ("gun", "pistol"), (Pair("a gun on grass", "a cat on grass"), Pair("a gun", "a cup")))
ONE = replace(CONCEPT, mentions=("gun",))
CONFIG = RecelerConfig(iterations=4, lr=1e-2, rank=3, steps=3, batch=2, attack_steps=2, attack_tokens=4)
SITE = Site("unet", "mid_block.attn2", 5)


class Wrapped(nn.Module):
    """An attention with an adapter after it, of two plain Linears."""

    def __init__(self, layer: Any, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.layer, self.own = layer, torch.empty(0)
        self.inner, self.outer = nn.Linear(down.shape[1] - 1, len(down)), nn.Linear(len(down), len(up))
        with torch.no_grad():
            for linear, packed in ((self.inner, down), (self.outer, up)):
                linear.weight.copy_(packed[:, :-1])
                linear.bias.copy_(packed[:, -1])

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = self.layer(*args, **kwargs)
        self.own = self.outer(nn.GELU()(self.inner(made)))
        return made + self.own


def wrapped(unet: Any, factors: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """A copy of the U-Net with adapters `[r, d + 1]` and `[d, r + 1]` by path."""
    made = copy.deepcopy(unet)
    for path, (down, up) in factors.items():
        parent = made.get_submodule(path.rpartition(".")[0])
        parent.attn2 = Wrapped(parent.attn2, down.detach().float(), up.detach().float())
    return made


def shaken(task: Task) -> Task:
    """The task with adapters that do something."""
    with torch.no_grad():
        for n, change in enumerate(task.student.changes.values()):
            change.add_(0.3 * torch.randn(change.shape, generator=torch.Generator().manual_seed(n)))
    return task


def factors(student: Adapted) -> dict[str, tuple[Tensor, Tensor]]:
    """By path, read from the packed tensor row by row."""
    found = {}
    for site, packed in student.changes.items():
        rows = packed.detach()
        up = torch.stack([rows[student.rank + n, : site.width] for n in range(student.rank + 1)], 1)
        found[site.path] = rows[: student.rank], up
    return found


@torch.no_grad()
def states(pipe: Any, text: str) -> Tensor:
    made: Tensor = pipe.encode_prompt(text, "cpu", 1, False)[0]
    return made


def draw(pipe: Any) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe("a gun on grass", generator=torch.Generator().manual_seed(3), **how).images
    return made


def share(unet: Any, x: Tensor, t: Any, prompt: Tensor, token: int) -> Tensor:
    """How much every pixel attends to a token, `[2, 8, 8]`: head by head, of every layer, stretched to 0..1."""
    inputs: list[tuple[Any, Tensor]] = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: inputs.append((m, args[0])))
        for path, layer in unet.named_modules()
        if path.endswith(".attn2")
    ]
    unet(x, t, prompt.repeat(2, 1, 1))
    for handle in handles:
        handle.remove()
    layers = []
    for layer, hidden in inputs:
        size, wide = math.isqrt(hidden.shape[1]), len(layer.to_q.weight) // layer.heads
        total = torch.zeros(2, hidden.shape[1])
        for head in range(layer.heads):
            part = slice(head * wide, (head + 1) * wide)
            q, k = hidden @ layer.to_q.weight[part].T, prompt[0] @ layer.to_k.weight[part].T
            total += (q @ k.T / math.sqrt(wide)).softmax(-1)[..., token] / layer.heads
        layers.append(F.interpolate(total.view(2, 1, size, size), (8, 8), mode="bilinear")[:, 0])
    mean = sum(layers[1:], layers[0]) / len(layers)
    return torch.stack([(one - one.min()) / (one.max() - one.min()) for one in mean])


def attacked(unet: Any, x: Tensor, t: Any, word: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """The word's states with four learnt ones after it, from its end token at position 2 on."""
    learnt = torch.rand(4, 64, generator=generator).requires_grad_()

    def prompt() -> Tensor:
        return torch.stack([*word[0, :2], *learnt, *word[0, 6:]])[None]

    adam = torch.optim.Adam([learnt], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        adam.zero_grad()
        F.mse_loss(unet(x, t, prompt().repeat(2, 1, 1)).sample, wanted).backward()
        adam.step()
    return prompt().detach()


def test_an_adapter_is_two_layers_with_a_gelu_between() -> None:
    """Number by number, with Φ(a) = (1 + erf(a / √2)) / 2 and gelu(a) = a Φ(a)."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 6, generator=generator), torch.randn(5, 4, generator=generator)
    x = torch.randn(2, 7, 5, generator=generator)
    delta = AdapterEdit(SITE, down, up).delta(x, 0.5)
    assert delta is not None
    for b, n in np.ndindex(2, 7):
        inner = [sum(float(row[i] * x[b, n, i]) for i in range(5)) + float(row[5]) for row in down]
        made = [a * (1 + math.erf(a / math.sqrt(2))) / 2 for a in inner]
        wanted = [sum(float(row[j]) * made[j] for j in range(3)) + float(row[3]) for row in up]
        assert delta[b, n].tolist() == pytest.approx([-0.5 * value for value in wanted], rel=1e-4, abs=1e-5)
    assert AdapterEdit(SITE, down, up).delta(x, 0.0) is None


def test_the_second_term_is_the_mean_square_outside_of_the_mask() -> None:
    """Patch by patch: one of a 2 x 2 layer is inside if any of its four pixels is."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(2, 4, 4)
    mask[0, 0, 1] = mask[0, 3, 3] = mask[1, 2, 0] = 1
    fine, coarse = torch.randn(2, 16, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    fine_out = [(b, p) for b in range(2) for p in range(16) if not mask[b, p // 4, p % 4]]
    coarse_out = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 3)]
    wanted = 0.0
    for output, rest in ((fine, fine_out), (coarse, coarse_out)):
        wanted += sum(float(output[b, p].square().mean()) for b, p in rest) / len(rest) / 2
    assert float(outside([fine, coarse], mask)) == pytest.approx(wanted, rel=1e-5)
    assert float(outside([fine, coarse], torch.ones(2, 4, 4))) == 0


def test_the_loss_is_the_paper_s(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, layer in tiny_pipe.unet.named_modules():
        if path.endswith(".attn2.to_v"):  # a random model's predictions hardly depend on the text
            layer.weight.data *= 30
    config = replace(CONFIG, eta=5.0, keep=1e-6, threshold=0.5)
    task = shaken(Task(tiny_pipe, ONE, config))
    asked, worst = list[Tensor](), task.worst

    def seen(*given: Any) -> Tensor:
        asked.append(given[3])
        return worst(*given)

    monkeypatch.setattr(task, "worst", seen)
    made = task.loss(torch.Generator().manual_seed(16))
    trained, unet = wrapped(tiny_pipe.unet, factors(task.student)), tiny_pipe.unet
    generator = torch.Generator().manual_seed(16)
    torch.randint(1, (1,), generator=generator)
    done = int(torch.randint(3, (1,), generator=generator))
    assert done == 2
    scheduler = copy.deepcopy(tiny_pipe.scheduler)
    scheduler.set_timesteps(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    word, nothing = states(tiny_pipe, "gun"), states(tiny_pipe, "")
    with torch.no_grad():
        for t in scheduler.timesteps[:done]:
            without = trained(x, t, nothing.repeat(2, 1, 1)).sample
            guided = without + 3.0 * (trained(x, t, word.repeat(2, 1, 1)).sample - without)
            x = scheduler.step(guided, t, x).prev_sample
        t = scheduler.timesteps[done]
        without, with_it = (unet(x, t, side.repeat(2, 1, 1)).sample for side in (nothing, word))
        mask = (share(unet, x, t, word, 1) >= 0.5).float()
    assert 0.1 < float(mask.mean()) < 0.9
    apart = float((with_it - without).abs().max())
    torch.testing.assert_close(asked[0], with_it, atol=apart / 10, rtol=0)
    prompt = attacked(trained, x, t, word, with_it, generator)
    with torch.no_grad():
        erased = trained(x, t, prompt.repeat(2, 1, 1)).sample
    outputs = [module.own for module in trained.modules() if isinstance(module, Wrapped)]
    assert len(outputs) == 4
    erasing, own = float(F.mse_loss(erased, without - 5 * (with_it - without))), float(outside(outputs, mask))
    wanted = erasing + 1e-6 * own
    assert float(made.detach()) == pytest.approx(wanted, rel=1e-4)
    assert 0.1 * wanted < 1e-6 * own < 0.9 * wanted


def test_the_learnt_prompt_is_what_brings_the_concept_back(tiny_pipe: Any) -> None:
    task = shaken(Task(tiny_pipe, ONE, CONFIG))
    trained = wrapped(tiny_pipe.unet, factors(task.student))
    generator = torch.Generator().manual_seed(1)
    x, t, word = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor(500), states(tiny_pipe, "gun")
    with torch.no_grad():
        wanted = tiny_pipe.unet(x, t, word.repeat(2, 1, 1)).sample
    found = task.worst(x, t, task.words[0], wanted, torch.Generator().manual_seed(2))
    own = attacked(trained, x, t, word, wanted, torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, own[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(found[:2], word[0, :2]) and torch.equal(found[6:], word[0, 6:])
    far = {}
    for steps in (1, 40):
        task.config = replace(CONFIG, attack_steps=steps)
        prompt = task.worst(x, t, task.words[0], wanted, torch.Generator().manual_seed(2))
        with torch.no_grad():
            far[steps] = float(F.mse_loss(trained(x, t, prompt.repeat(2, 1, 1)).sample, wanted))
    assert far[40] < far[1]
    task.config = replace(CONFIG, attack_steps=0)
    assert torch.equal(task.worst(x, t, task.words[0], wanted, generator), word[0])
    task.config = replace(CONFIG, attack_tokens=500)
    assert task.worst(x, t, task.words[0], wanted, generator).shape == (77, 64), "as many as there is room for"


def test_adapters_add_nothing_at_first(tiny_pipe: Any) -> None:
    task = Task(tiny_pipe, CONCEPT, replace(CONFIG, rank=64))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    given = x, torch.tensor(500), states(tiny_pipe, "gun"), {}
    with torch.no_grad():
        assert torch.equal(task.student(*given), frozen_unet(tiny_pipe)(*given))
    for site, packed in task.student.changes.items():
        down, up = packed.detach()[:64], packed.detach()[64:]
        assert not up.any() and 0.9 / site.width**0.5 < float(down.abs().max()) <= 1 / site.width**0.5


@pytest.mark.usefixtures("short_removal")
def test_it_is_an_eraser_as_any_other(tiny_pipe: Any, tmp_path: Path) -> None:
    plain, before = draw(tiny_pipe), {name: p.clone() for name, p in tiny_pipe.unet.state_dict().items()}
    eraser = method("receler").fit(tiny_pipe, CONCEPT, CONFIG)
    assert all(torch.equal(p, before[name]) for name, p in tiny_pipe.unet.state_dict().items())
    paths = {path for path, _ in tiny_pipe.unet.named_modules() if path.endswith(".attn2")}
    assert {edit.site.path for edit in eraser.edits} == paths
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    own = {edit.site.path: (edit.down, edit.up) for edit in eraser.edits if isinstance(edit, AdapterEdit)}
    mine, tiny_pipe.unet = tiny_pipe.unet, wrapped(tiny_pipe.unet, own)
    wanted, tiny_pipe.unet = draw(tiny_pipe), mine
    with again.attach(tiny_pipe) as attachment:
        np.testing.assert_allclose(draw(tiny_pipe), wanted, atol=1e-4)
        attachment.strength = 0.0
        assert np.array_equal(draw(tiny_pipe), plain)
    assert np.abs(wanted - plain).max() > 1e-3
    assert np.array_equal(draw(tiny_pipe), plain)


def test_an_interrupted_training_goes_on_to_the_same_bits(tiny_pipe: Any, tmp_path: Path) -> None:
    whole = method("receler").fit(tiny_pipe, CONCEPT, CONFIG)
    config = replace(CONFIG, checkpoint=str(tmp_path / "training"))

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with watch_training(stop), pytest.raises(KeyboardInterrupt):
        method("receler").fit(tiny_pipe, CONCEPT, config)
    steps: list[int] = []
    with watch_training(lambda step, *_: steps.append(step)):
        again = method("receler").fit(tiny_pipe, CONCEPT, config)
    assert steps == [3, 4]
    assert again.digest == whole.digest


def test_training_lowers_the_loss(tiny_pipe: Any) -> None:
    losses: list[float] = []
    with watch_training(lambda step, steps, loss: losses.append(loss)):
        method("receler").fit(tiny_pipe, ONE, replace(CONFIG, iterations=20, steps=1))
    assert losses[-1] < 0.8 * losses[0]


def test_the_settings_are_the_authors_own() -> None:
    config = RecelerConfig()
    assert (config.iterations, config.lr, config.rank, config.eta, config.steps) == (500, 3e-4, 128, 1.0, 50)
    assert (config.attack_steps, config.attack_lr, config.attack_tokens) == (50, 0.1, 16)
    assert (config.keep, config.threshold, config.guidance) == (0.1, 0.1, 3.0)


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="leaves no room after"):
        method("receler").fit(tiny_pipe, replace(CONCEPT, mentions=(" ".join(["gun"] * 90),)), CONFIG)
    with pytest.raises(ExciseError, match="at least 1"):
        replace(CONFIG, rank=0)
    with pytest.raises(ExciseError, match="threshold"):
        replace(CONFIG, threshold=1.0)
    edit = AdapterEdit(SITE, torch.ones(3, 6), torch.ones(5, 4))
    for down, up in ((torch.ones(3, 5), edit.up), (edit.down, torch.ones(5, 3)), (torch.ones(0, 6), torch.ones(5, 1))):
        with pytest.raises(ExciseError, match="are not an adapter's"):
            AdapterEdit(SITE, down, up)
    with pytest.raises(ExciseError, match="not finite"):
        AdapterEdit(SITE, torch.full((3, 6), torch.nan), edit.up)
    with pytest.raises(ExciseError, match="gave"):
        edit.delta(torch.ones(1, 3, 4))
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match="receler trains a U-Net"):
            method("receler").fit(tiny.build("sd3"), CONCEPT, CONFIG)
