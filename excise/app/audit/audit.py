"""An audit of an eraser made by someone else: what its neurons fire on, and what it changes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import excise
from excise.app.audit.effects import DENOISED, Effects, Measured, measure, share, size
from excise.app.audit.inputs import Benign, Word, named_saes
from excise.app.audit.neurons import NeuronView, Pool, pool_of, view
from excise.concepts import Concept
from excise.concepts.sentences import GroupSentence, group_sentences, sentences
from excise.erasers import Attachment, Eraser, SAEEdit
from excise.erasers.artefact.files import SIGNATURE
from excise.erasers.edits.sae_rows import Rows, altered_rows
from excise.erasers.hooks.context import proving
from excise.erasers.proof.effects import Progress, text_changes
from excise.erasers.proof.removal import MOST_PREDICTED, can_measure_text, removed_from_prediction, removed_from_text
from excise.erasers.proof.solved import altered_weights
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods.solving import solve_again
from excise.neurons import flags
from excise.neurons.flags import Flag, Group
from excise.pipeline import Pipeline
from excise.sae import TopKSAE

SCHEMA = "excise.audit/1"
Outcome = Literal["clear", "note", "red", "not applicable"]


@dataclass(frozen=True)
class Audit:
    """The findings."""

    concept: str
    name: str
    method: str
    flags: tuple[Flag, ...]
    checks: Mapping[str, Outcome]
    """The outcome of each check, in the order of `flags.CHECKS`."""
    neurons: tuple[NeuronView, ...]
    effects: tuple[Effects, ...]
    groups: tuple[Group, ...]
    benign: Mapping[str, Any]
    left_out: tuple[str, ...]
    """What was not checked and why, one sentence each."""
    provenance: Mapping[str, Any]

    @property
    def red(self) -> bool:
        """Whether any flag is red."""
        return any(flag.severity == "red" for flag in self.flags)

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON data. Equal audits give equal text."""
        data = asdict(self)
        for effect, effect_json in zip(self.effects, data["effects"], strict=True):
            for word, row in zip(effect.words, effect_json["words"], strict=True):
                row["caught"] = word.caught
        return {"schema": SCHEMA, "red": self.red, **data}


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that an audit needs. `folder` holds the eraser; `command` is the command line as typed."""

    eraser: Eraser
    pipe: Pipeline
    concept: Concept
    words: Sequence[Word]
    benign: Benign
    saes: Mapping[str, TopKSAE]
    """The eraser's SAEs that were found, by digest."""
    folder: Path
    command: Sequence[str] = ()
    neighbours: int = 5
    """How many neighbours are shown for each neuron."""

    @cached_property
    def groups(self) -> tuple[GroupSentence, ...]:
        return group_sentences()

    @property
    def edits(self) -> list[SAEEdit]:
        """The edits whose neurons can be read on prompts."""
        return [edit for edit in self.eraser.text_edits if isinstance(edit, SAEEdit)]

    @property
    def sentences_by_word(self) -> dict[Word, list[str]]:
        """The sentences that use each word for the concept."""
        return {word: sentences(word.text, self.concept.kind) for word in self.words}

    @cached_property
    def pool(self) -> Pool:
        return pool_of(self.concept, [w.text for w in self.words], self.benign.prompts, self.groups)

    @property
    def steps(self) -> int:
        """How many prompts `run` reads, the total of its progress."""
        total = len(self.edits) * len(self.pool.prompts)
        if self.eraser.text_edits:
            total += size("text states", self.sentences_by_word, self.benign.prompts) + len(self.pool.groups)
        if self.eraser.denoisers:
            total += size("prediction", self.sentences_by_word, self.benign.prompts)
        return total

    def run(self, progress: Progress = lambda done: None) -> Audit:
        """Run every check.

        Raises:
            ExciseError: The pipeline is not the one that the eraser was made for, or an edit with `gate="topk"` lacks
                its SAE.
        """
        solved = solve_again(self.pipe, self.eraser)
        weights = altered_weights(self.eraser.edits, solved.edits) if solved is not None else []
        attachment, refusal = self._attached()
        effects, changes = self._measured(attachment, progress)
        left_out = [] if attachment else ["What the eraser changes was not measured: it could not be attached."]
        rows = [edit for edit in self.eraser.edits if isinstance(edit, Rows) and edit.sae_digest in self.saes]
        altered = {edit: odd for edit in rows if (odd := altered_rows(edit, self.saes[edit.sae_digest]))}
        found = [flags.no_bite(refusal), flags.altered_rows((edit.site.key, *odd) for edit, odd in altered.items())]
        found.append(flags.altered_weights(weights))
        compared = {"altered rows": bool(rows), "altered weights": solved is not None}
        views: list[NeuronView] = []
        fired: dict[str, bool] = {}
        for edit in self.edits:
            sae = self.saes.get(edit.sae_digest) if edit not in altered else None
            some, fires = view(self.pipe, edit, sae, self.pool, self.neighbours, progress)
            views += some
            fired = {text: fired.get(text, False) or now for text, now in fires.items()}
            if edit in altered:
                left_out.append(
                    f"The neurons of {edit.site.key} are read by the eraser's own rows, which were altered."
                )
            elif sae is None:
                names = ", ".join(repr(name[:100]) for name in list(named_saes(self.eraser.created))[:3])
                named = f"; the eraser names {names}, which is not opened" if names else ""
                left_out.append(
                    f"The SAE for {edit.site.key} was not found (name it with --sae FOLDER{named}). Its neurons are "
                    "read with the eraser's own threshold, and their neighbours are not shown."
                )
        left_out += self._not_applicable()
        if unclear := sum(changes.get(g.without, 0) > 0 for g in self.groups):
            left_out.append(
                f"Group words could not be judged in {unclear} of {len(self.groups)} sentences about people: those "
                "sentences change without the word too."
            )
        groups = self._grouped(changes, fired, effects)
        found += [flag for seen in views for flag in seen.flags(several=len(self.edits) > 1)]
        for effect in effects:
            found += self._flagged(effect)
        found += flags.protected(groups)
        raised = flags.joined(found)
        return Audit(
            concept=self.eraser.concept,
            name=self.eraser.name,
            method=self.eraser.method,
            flags=tuple(raised),
            checks=self._checks(raised, views, effects, changes, compared),
            neurons=tuple(views),
            effects=tuple(effects),
            groups=tuple(groups),
            benign={"source": self.benign.source, "prompts": len(self.benign.prompts), "dropped": self.benign.dropped},
            left_out=tuple(left_out),
            provenance=self._provenance(attachment.shift if attachment is not None and refusal is None else None),
        )

    def _measured(self, attachment: Attachment | None, progress: Progress) -> tuple[list[Effects], dict[str, float]]:
        """Return the effects, and by how much the text states of each sentence about a group change."""
        effects, changes = list[Effects](), dict[str, float]()
        if attachment is None:
            return effects, changes
        with attachment, proving(attachment):  # other attached erasers may change these prompts too
            if self.eraser.text_edits:
                about = [self.pool.prompts[n] for n in self.pool.groups]
                changes = dict(zip(about, text_changes(self.pipe, about, progress), strict=True))
                effects.append(self._effects("text states", attachment, progress))
            if self.eraser.denoisers:
                effects.append(self._effects("prediction", attachment, progress))
        return effects, changes

    def _effects(self, measured: Measured, attachment: Attachment, progress: Progress) -> Effects:
        words = [word.text for word in self.words]
        removals = {}
        if measured == "text states" and can_measure_text(attachment):
            removals = {word: removed_from_text(attachment, word, self.concept.kind, words) for word in words}
        if measured == "prediction":
            few = words[:MOST_PREDICTED]
            removals = {word: removed_from_prediction(attachment, word, self.concept.kind, words) for word in few}
        of = (self.pipe, self.eraser, measured, self.sentences_by_word, self.benign.prompts)
        return measure(*of, progress, removals)

    def _checks(
        self, raised: list[Flag], views: list[NeuronView], effects: list[Effects], changes: Any, compared: Any
    ) -> dict[str, Outcome]:
        applies = {
            "no bite": True,
            **compared,
            **dict.fromkeys(("not caught", "touches too much"), bool(effects)),
            "protected group": any(changes.get(g.without) == 0 for g in self.groups),
            **dict.fromkeys(("structural", "polysemantic"), bool(views)),
            "split": any(seen.neighbours is not None for seen in views),
        }
        worst: dict[str, Outcome] = {flag.kind: flag.severity for flag in reversed(raised)}
        return {kind: worst.get(kind, "clear" if applies[kind] else "not applicable") for kind in flags.CHECKS}

    def _attached(self) -> tuple[Attachment | None, str | None]:
        """Attach the eraser. Return the attachment, and the message if the eraser was refused for changing too
        little."""
        sae = next((self.saes[e.sae_digest] for e in self.edits if e.needs_sae and e.sae_digest in self.saes), None)
        if sae is None and any(edit.needs_sae for edit in self.edits):
            raise ExciseError('this eraser has gate="topk", which needs the SAE it was made from; name it with --sae')
        try:
            return Attachment(self.eraser, self.pipe, sae=sae, trial=True), None
        except EraserDidNotFire as error:
            refusal = str(error)
        try:
            return Attachment(self.eraser, self.pipe, sae=sae, strict=False, trial=True), refusal
        except EraserDidNotFire:
            return None, refusal

    def _flagged(self, effect: Effects) -> list[Flag | None]:
        """Return the effect's flags.

        Only edits of SAE neurons promise to leave benign text states alone: for other kinds, and for predictions, a
        flag is a note.
        """
        spares = effect.measured == "text states" and bool(self.edits)
        return [
            flags.not_caught(effect.words, "red" if effect.measured == "text states" else "note"),
            flags.touches(effect.touched, effect.benign, "red" if spares else "note"),
        ]

    def _grouped(self, changes: Mapping[str, float], fired: Mapping[str, bool], effects: list[Effects]) -> list[Group]:
        if not self.eraser.text_edits:
            return []
        name = effects[0].name_change if effects else 0.0
        by_word: dict[tuple[str, str], list[GroupSentence]] = {}
        for sentence in self.groups:
            by_word.setdefault((sentence.word, sentence.group), []).append(sentence)
        found = []
        for (word, group), used in by_word.items():
            touched = [(changes[s.text], s.text) for s in used if changes.get(s.text) and not changes.get(s.without)]
            fires = [s for s in used if fired.get(s.text) and not fired.get(s.without)]
            most, text = max(touched, default=(0.0, None))
            found.append(Group(word, group, len(used), len(touched), len(fires), share(most, name), text))
        return sorted(found, key=lambda g: (-g.touched, -g.fired))

    def _not_applicable(self) -> list[str]:
        """Return a sentence for each check that does not apply to this kind of eraser."""
        skipped = []
        others = [edit for edit in self.eraser.edits if not isinstance(edit, SAEEdit)]
        for part, where in (("text", "of text encoders"), ("denoiser", "of the denoiser")):
            kinds = sorted({edit.kind for edit in others if edit.site.part == part})
            if not kinds:
                continue
            text = f"What fires on prompts: not applicable to edits {where} ({', '.join(kinds)})."
            if part == "denoiser":
                text += (
                    f" Their effect is measured on the denoiser's prediction, for at most {DENOISED} benign prompts; "
                    "`excise bench` measures what happens to pictures."
                )
            skipped.append(text)
        if not self.eraser.text_edits:
            skipped.append("Protected groups were not checked: the eraser edits no text states.")
        return skipped

    def _provenance(self, shift: float | None) -> dict[str, Any]:
        made = self.eraser.made_for
        signed = "present, not checked here (use excise verify --key)" if (self.folder / SIGNATURE).exists() else "none"
        written = (self.folder / "eraser.json").stat().st_mtime
        return {
            "digest": self.eraser.digest,
            "signature": signed,
            "mentions": list(self.eraser.mentions),
            "edits": [
                {"site": e.site.key, "kind": e.kind, "neurons": e.neurons, **dict([e.coefficient])}
                for e in self.eraser.edits
            ],
            "made_for": {
                "pipeline": made.get("pipeline"),
                "model": made.get("model"),
                "encoders": made.get("encoders"),
                "tokenizers": made.get("tokenizers"),
            },
            "created": dict(self.eraser.created),
            "measured": dict(self.eraser.measured),
            "canary": list(self.eraser.canary),
            "canary_shift": {"fitted": self.eraser.canary_shift, "now": shift},
            "written": datetime.fromtimestamp(written, timezone.utc).date().isoformat(),
            "command": shlex.join(self.command),
            "excise": excise.__version__,
        }
