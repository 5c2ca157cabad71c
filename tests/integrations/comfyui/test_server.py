"""The pack in a real ComfyUI server, on the bundled model: pictures, caching, refusals and enforcement."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integrations.comfyui.server import PACK, ROOT, Server, needs_comfyui

OLD = ROOT / "tests" / "erasers" / "old"
ERASERS = {"gun": "snce", "gun-uce": "uce", "gun-saeuron": "saeuron", "gun-casteer": "casteer", "sdxl": "snce-sdxl"}
GUN, CAT = "a gun on grass", "a cat on grass"
pytestmark = needs_comfyui
Graph = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server with erasers for the bundled model."""
    made = Server(tmp_path_factory.mktemp("comfyui"))
    for name, folder in ERASERS.items():
        made.put(OLD / folder, name)
    try:
        yield made.wait()
    finally:
        made.stop()


def as_api(workflow: Any, info: Any) -> Graph:
    """Return a workflow of ComfyUI's page in the form that its queue takes."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph: Graph = {}
    for node in workflow["nodes"]:
        inputs = {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        values = iter(node["widgets_values"])
        given = info[node["type"]]["input"]
        for name, (kind, *options) in {**given.get("required", {}), **given.get("optional", {})}.items():
            if name in inputs or not (isinstance(kind, list) or kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")):
                continue
            inputs[name] = next(values)
            if options and options[0].get("control_after_generate"):
                next(values)
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def example(name: str, server: Server) -> Graph:
    """Return an example workflow of the pack."""
    return as_api(json.loads((PACK / "example_workflows" / f"{name}.json").read_text()), server.get("/object_info"))


def the(graph: Graph, kind: str, n: int = 0) -> str:
    """Return the number of the n-th node of a kind."""
    return [number for number, node in graph.items() if node["class_type"] == kind][n]


def simple(
    prompt: str, clip: str = "erased", guard: bool = True, model_eraser: str = "", steps: int = 20, **apply: Any
) -> Graph:
    """Return a graph that draws a prompt with the demo model."""
    clips = {"plain": ["demo", 1], "erased": ["apply", 0]}
    graph: Graph = {
        "demo": {"class_type": "ExciseDemoModel", "inputs": {}},
        "load": {"class_type": "ExciseLoadEraser", "inputs": {"eraser": apply.pop("eraser", "gun")}},
        "apply": {
            "class_type": "ExciseApplyEraser",
            "inputs": {"clip": ["demo", 1], "eraser": ["load", 0], "strength": 1.0, "strict": True, **apply},
        },
        "p": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": clips[clip]}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["demo", 1]}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "vae": {"class_type": "VAEDecode", "inputs": {"samples": ["k", 0], "vae": ["demo", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["vae", 0], "filename_prefix": "excise"}},
    }
    model = ["demo", 0]
    if model_eraser:
        graph["load2"] = {"class_type": "ExciseLoadEraser", "inputs": {"eraser": model_eraser}}
        inputs = {"model": model, "eraser": ["load2", 0], "strength": 1.0, "strict": True}
        graph["model"], model = {"class_type": "ExciseApplyEraserToModel", "inputs": inputs}, ["model", 0]
    if guard:
        inputs = {"model": model, "clip": ["apply", 0]}
        graph["guard"], model = {"class_type": "ExciseGuard", "inputs": inputs}, ["guard", 0]
    ways = {"seed": 7, "steps": steps, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    wires = {"model": model, "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["latent", 0]}
    graph["k"] = {"class_type": "KSampler", "inputs": {**wires, **ways}}
    return graph


def by_diffusers(pipe: Any, prompt: str, *erasers: str, steps: int = 20) -> Any:
    """Return diffusers' picture of a prompt, with erasers attached."""
    import contextlib

    import torch

    from excise.erasers import Eraser

    with contextlib.ExitStack() as attached:
        for name in erasers:
            attached.enter_context(Eraser.load(OLD / ERASERS[name]).attach(pipe))
        generator = torch.Generator().manual_seed(7)
        made = pipe(
            prompt, num_inference_steps=steps, guidance_scale=4.0, generator=generator, output_type="np"
        ).images[0]
    return (made * 255).round().astype(np.int16)


def test_the_first_example_draws_what_diffusers_draws_erased_and_plain(server: Server, one_bundled_pipe: Any) -> None:
    graph = example("excise_before_and_after", server)
    made = server.run(graph)
    assert made.status == "success", made.error
    erased, plain = (server.image(made, the(graph, "SaveImage", n)) for n in (0, 1))
    assert abs(erased - by_diffusers(one_bundled_pipe, GUN, "gun")).max() <= 1
    assert abs(plain - by_diffusers(one_bundled_pipe, GUN)).max() <= 1
    assert abs(erased - plain).max() > 50
    report = made.outputs[the(graph, "ExciseEraserReport")]["text"][0]
    assert "fired in 1 of" in report, report
    again = server.run(graph)
    assert again.status == "success"
    assert set(again.cached) == set(graph), "nothing is computed again"


def test_the_second_example_draws_what_diffusers_draws(server: Server, one_bundled_pipe: Any) -> None:
    graph = example("excise_guarded", server)
    made = server.run(graph)
    assert made.status == "success", made.error
    picture = server.image(made, the(graph, "SaveImage"))
    assert abs(picture - by_diffusers(one_bundled_pipe, GUN, "gun", "gun-uce")).max() <= 1


@pytest.mark.parametrize(("eraser", "steps"), [("gun-uce", 20), ("gun-saeuron", 4), ("gun-casteer", 20)])
def test_erasers_of_the_model_draw_what_diffusers_draws(
    eraser: str, steps: int, server: Server, one_bundled_pipe: Any
) -> None:
    made = server.run(simple(GUN, "plain", guard=False, model_eraser=eraser, steps=steps))
    assert made.status == "success", made.error
    picture = server.image(made, "save")
    assert abs(picture - by_diffusers(one_bundled_pipe, GUN, eraser, steps=steps)).max() <= 1
    plain = server.image(server.run(simple(GUN, "plain", guard=False, steps=steps)), "save")
    assert abs(picture - plain).max() > 20, "the eraser acts"


def test_another_concepts_picture_is_the_same_bit_for_bit(server: Server) -> None:
    erased, plain = (
        server.image(server.run(simple(CAT, clip, guard=clip == "erased")), "save") for clip in ("erased", "plain")
    )
    assert np.array_equal(erased, plain)


def test_an_eraser_replaced_on_disk_is_noticed(server: Server) -> None:
    server.put(OLD / "snce", "changing")
    graph = simple(GUN, eraser="changing")
    before = server.image(server.run(graph), "save")
    server.put(OLD / "saemnesia-text", "changing")
    made = server.run(graph)
    assert made.status == "success", made.error
    assert "load" not in made.cached
    assert "demo" in made.cached
    assert not np.array_equal(server.image(made, "save"), before)
    (server.erasers / "changing" / "eraser.json").write_text("{}")
    assert "altered" in server.run(graph).error


def test_the_guard_refuses_what_the_erased_clip_did_not_encode(server: Server) -> None:
    assert "were not made by a CLIP with eraser" in server.run(simple(GUN, "plain")).error
    graph = simple(CAT)
    graph["other"] = {"class_type": "CLIPTextEncode", "inputs": {"text": GUN, "clip": ["demo", 1]}}
    graph["k"]["inputs"]["positive"] = ["join", 0]
    wires = {"conditioning_to": ["p", 0], "conditioning_from": ["other", 0]}
    for node, more in (("ConditioningConcat", {}), ("ConditioningAverage", {"conditioning_to_strength": 0.1})):
        graph["join"] = {"class_type": node, "inputs": {**wires, **more}}
        assert "blended with others" in server.run(graph).error, node
    graph["join"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["p", 0]}}
    assert server.run(graph).status == "success"
    graph = simple(CAT)
    graph["n"]["inputs"]["text"], graph["k"]["inputs"]["cfg"] = GUN, 0.5
    assert "negative conditioning" in server.run(graph).error


def test_clip_skip_and_wrong_erasers_are_refused(server: Server) -> None:
    graph = simple(GUN)
    graph["skip"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["apply", 0], "stop_at_clip_layer": -2}}
    graph["p"]["inputs"]["clip"] = ["skip", 0]
    assert "clip skip reads layer 4" in server.run(graph).error
    assert "HTTP 400" in server.run(simple(GUN, eraser="../gun")).status
    assert "has no text_encoder_2" in server.run(simple(GUN, eraser="sdxl")).error
    assert "use Apply Eraser to Model" in server.run(simple(GUN, eraser="gun-uce")).error


def test_a_service_enforces_erasers_and_tells_its_health(tmp_path: Path) -> None:
    server = Server(tmp_path / "comfyui", EXCISE_ENFORCE=str(OLD / "snce"))
    try:
        server.wait()
        graph = {key: node for key, node in simple(GUN, "plain", guard=False).items() if key not in ("load", "apply")}
        made = server.run(graph)
        assert made.status == "success", made.error
        told = server.get("/excise/status")["enforced"]
        assert [eraser["name"] for eraser in told["erasers"]] == ["gun-snce"]
        assert (told["clips"], told["samplings"], told["refused"]) == (1, 1, 0)
        reference = server.image(made, "save")
    finally:
        server.stop()
    assert reference.shape == (64, 64, 3)


def test_it_does_not_start_with_a_bad_folder(tmp_path: Path) -> None:
    server = Server(tmp_path / "comfyui", EXCISE_ENFORCE=str(tmp_path / "missing"))
    try:
        assert server.process.wait(300) != 0
    except subprocess.TimeoutExpired:
        server.stop()
        raise
    assert "Excise did not start" in server.log.read_text()
