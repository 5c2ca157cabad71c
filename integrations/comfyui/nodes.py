"""ComfyUI's nodes."""

from __future__ import annotations

from typing import Any

from . import folders
from .api import ComfyExtension, io
from .apply import applied
from .denoiser import applied_to_model
from .guard import guarded
from .injection import STRONGEST
from .report import report

CATEGORY = "excise"
Eraser = io.Custom("EXCISE_ERASER")


def _strength() -> Any:
    return io.Float.Input(
        "strength", default=1.0, min=0.0, max=STRONGEST, step=0.05, tooltip="1 is the strength of the fit, 0 is off."
    )


def _strict(what: str) -> Any:
    return io.Boolean.Input("strict", default=True, tooltip=f"Refuse {what}.")


class LoadEraser(io.ComfyNode):  # type: ignore[misc]
    """Loads an eraser from models/erasers. It is loaded again when its files change."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ExciseLoadEraser",
            display_name="Load Eraser",
            category=CATEGORY,
            description="Load an eraser from models/erasers. Its files are checked against its manifest.",
            search_aliases=["excise", "concept erasure", "unlearn"],
            inputs=[io.Combo.Input("eraser", options=folders.names(), tooltip="A folder below models/erasers.")],
            outputs=[Eraser.Output(display_name="eraser"), io.String.Output(display_name="digest")],
        )

    @classmethod
    def fingerprint_inputs(cls, eraser: str) -> str:
        return folders.fingerprint(eraser)

    @classmethod
    def execute(cls, eraser: str) -> Any:
        made = folders.load(eraser)
        return io.NodeOutput(made, made.digest)


class ApplyEraser(io.ComfyNode):  # type: ignore[misc]
    """Applies an eraser to a CLIP."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ExciseApplyEraser",
            display_name="Apply Eraser",
            category=CATEGORY,
            description="Erase a concept from the prompts that this CLIP encodes.",
            search_aliases=["excise", "concept erasure", "unlearn"],
            inputs=[
                io.Clip.Input("clip"),
                Eraser.Input("eraser"),
                _strength(),
                _strict("another model, a LoRA on the CLIP, and a clip skip past the eraser"),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip: Any, eraser: Any, strength: float, strict: bool) -> Any:
        return io.NodeOutput(applied(clip, eraser, strength, strict))


class ApplyEraserToModel(io.ComfyNode):  # type: ignore[misc]
    """Applies an eraser that edits a denoiser to a MODEL."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ExciseApplyEraserToModel",
            display_name="Apply Eraser to Model",
            category=CATEGORY,
            description="Apply an eraser that changes a U-Net's weights or blocks (UCE, ESD, SAeUron and others).",
            inputs=[io.Model.Input("model"), Eraser.Input("eraser"), _strength(), _strict("another model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, eraser: Any, strength: float, strict: bool) -> Any:
        return io.NodeOutput(applied_to_model(model, eraser, strength, strict))


class Guard(io.ComfyNode):  # type: ignore[misc]
    """Makes a MODEL refuse conditionings that the CLIP did not make."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ExciseGuard",
            display_name="Excise Guard",
            category=CATEGORY,
            description="Refuse to sample from a conditioning that this erased CLIP did not make.",
            inputs=[io.Model.Input("model"), io.Clip.Input("clip", tooltip="The CLIP from the last Apply Eraser.")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any) -> Any:
        return io.NodeOutput(guarded(model, clip))


class EraserReport(io.ComfyNode):  # type: ignore[misc]
    """Says what the erasers of a CLIP did."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ExciseEraserReport",
            display_name="Eraser Report",
            category=CATEGORY,
            description="Say which erasers a CLIP has and in how many prompts they fired. No prompt is shown.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip"),
                io.AnyType.Input("after", optional=True, tooltip="Report after this was computed, such as the image."),
            ],
            outputs=[io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, clip: Any, after: Any = None) -> Any:
        text = report(clip)
        return io.NodeOutput(text, ui={"text": (text,)})


class DemoModel(io.ComfyNode):  # type: ignore[misc]
    """Loads the small Stable Diffusion that comes with Excise."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="ExciseDemoModel",
            display_name="Demo Model",
            category=CATEGORY,
            description="Excise's bundled model: 64 by 64 emoji pictures in seconds on a CPU, without a download.",
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> Any:
        from .demo_model import load

        return io.NodeOutput(*load())


class Excise(ComfyExtension):  # type: ignore[misc]
    """The node pack."""

    async def get_node_list(self) -> list[Any]:
        """Return the nodes' classes."""
        return [LoadEraser, ApplyEraser, ApplyEraserToModel, Guard, EraserReport, DemoModel]
