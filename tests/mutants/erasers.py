"""Edits, their gates and levels, digests and manifests, and what guards the way to the denoiser."""

from __future__ import annotations

from tests.mutants import of

MUTANTS = [
    *of(
        "excise/erasers/edits/text_sae.py",
        "tests/erasers/edits/test_text_sae.py",
        ("passed(preacts, preacts, threshold.clamp(min=0))",
         "passed(preacts, preacts, threshold.clamp(min=0), equal=True)"),
        ("passed(preacts, preacts, threshold.clamp(min=0))", "passed(preacts, preacts, threshold)"),
        ("    return passed(gain * z, loudest, threshold.clamp(min=0))\n",
         "    return passed(gain * z, loudest, threshold.clamp(min=0), equal=True)\n"),
        ("keepdim=True)\n    gain = (typical / loudest.clamp(min=1e-6)).clamp(min=1)\n",
         "keepdim=True)\n    gain = typical / loudest.clamp(min=1e-6)\n"),
        ("    return passed(gain * z, loudest, threshold.clamp(min=0))\n",
         "    return passed(z, loudest, threshold.clamp(min=0))\n"),
        ("passed(gain * z, loudest, threshold.clamp(min=0)), loudest",
         "passed(gain * z, loudest, threshold.clamp(min=0), equal=True), loudest"),
        ("amount = strength * self.lam\n", "amount = self.lam\n"),
        ('{"none": 0.0, "same": 1.0, "flip": -1.0}', '{"none": 1.0, "same": 1.0, "flip": -1.0}'),
        ('{"none": 0.0, "same": 1.0, "flip": -1.0}', '{"none": 0.0, "same": 1.0, "flip": 1.0}'),
        ("torch.zeros_like(values[:, : self.lead])", "values[:, : self.lead]"),
        ("self.lam >= 0)", "self.lam >= -9)"),
    ),
    *of(
        "excise/erasers/edits/vectors.py",
        "tests/methods/steering/test_casteer_gated.py",
        ("(self.thresholds > 0)", "(self.thresholds >= 0)"),
        ("level > bound", "level >= 0"),
        ("if opened is not None and step.drawing", "if opened is not None"),
        ("mask = opened.across(mask, step)", "pass"),
        ("removed = along.clamp(min=0)", "removed = along"),
        ("surrogate(gated, removed, level, bound) * s", "gated * s"),
        ("strength * self.beta * surrogate(", "strength * surrogate("),
    ),
    *of(
        "excise/erasers/edits/block_sae.py",
        "tests/methods/steering/test_casteer_gated.py",
        ("again, self._call = step is self._call, step", "again, self._call = False, step"),
        ("self._runs[size] - again", "self._runs[size]"),
        ("mask = mask | self._masks[size, run]\n            self", "pass\n            self"),
    ),
    *of(
        "excise/erasers/gates.py",
        "tests/erasers/test_gates.py",
        ("level >= bound if equal else level > bound", "level > bound if equal else level >= bound"),
        ("(level - bound) / (WIDTH * scale)", "(bound - level) / (WIDTH * scale)"),
        ("(level - bound) / (WIDTH * scale)", "(level - bound) / scale"),
        ("((level - bound) / scale).amax()", "((level - bound) / scale).amin()"),
        ("((level - bound) / scale).amax()", "(level - bound).amax()"),
        ("hard.detach() + (soft - soft.detach())", "soft"),
    ),
    *of(
        "excise/erasers/edits/base.py",
        "tests/erasers/edits/test_text_sae.py",
        ("torch.where((delta != 0).any(-1, keepdim=True), edited, h)", "edited"),
    ),
    *of(
        "excise/erasers/edits/sae_rows.py",
        "tests/erasers/edits/test_text_sae.py",
        ("return (h - b_pre) @ W_enc.T + b_enc", "return h @ W_enc.T + b_enc"),
        ("return (h - b_pre) @ W_enc.T + b_enc", "return (h - b_pre) @ W_enc.T"),
        ('hashlib.sha256(f"k={_k(sae)}".encode())', "hashlib.sha256()"),
        ('for name in ("W_enc", "W_dec", "b_enc", "b_pre"):\n        tensor', 'for name in ():\n        tensor'),
    ),
    *of(
        "excise/erasers/edits/sae_rows.py",
        "tests/erasers/test_verify.py::test_rows_are_the_saes_to_the_bit",
        ("a.contiguous().view(torch.int32), b.contiguous().view(torch.int32)", "a, b"),
        ("if d != edit.site.width or int(indices.max()) >= m:", "if d != edit.site.width:"),
    ),
    *of(
        "excise/erasers/proof/solved.py",
        "tests/erasers/proof/test_solved.py",
        ("<= TOLERANCE * wanted.norm()", "<= 2 * TOLERANCE * wanted.norm()"),
        ("ours.count(key) != 1 or theirs", "theirs"),
        ("or theirs.count(key) != 1}", "}"),
        ("type(edit) is type(solved) is WeightEdit", "isinstance(edit, WeightEdit)"),
        ("saved.shape == wanted.shape and ", ""),
    ),
    *of(
        "excise/erasers/proof/removal.py",
        "tests/erasers/proof/test_removal.py",
        ("own - others.double().mean(0), own - edited.double()", "own - others.double()[0], own - edited.double()"),
        ("own - others.double().mean(0), own - edited.double()",
         "own - others.double().mean(0), edited.double() - own"),
        ("float((removed * difference).sum()), float", "float((removed * difference).abs().sum()), float"),
        ("return self.along / self.difference if", "return abs(self.along) / self.difference if"),
        ("norms = self.difference**0.5 * self.removed**0.5", "norms = self.difference * self.removed"),
        ("return self.margin >= 1", "return self.margin > 1"),
        ("values = zip((self.share, self.cosine, self.lead), self.floor, strict=True)",
         "values = zip((self.share, self.lead), self.floor[::2], strict=True)"),
        ("values = zip((self.share, self.cosine, self.lead), self.floor, strict=True)",
         "values = zip((self.share, self.cosine), self.floor[:2], strict=True)"),
        ("if all(map(math.isfinite, found)) else -math.inf", ""),
        ("if not self.others or not self.share > 0:", "if not self.others or self.share == 0:"),
        ("return 1 - sum(self.others) / len(self.others) / self.share", "return 1 - max(self.others) / self.share"),
        ("for v in others if v != w", "for v in (0, *others) if v != w"),
        ("self.removed + other.removed)", "self.removed)"),
    ),
    *of(
        "excise/methods/sae/calibrate.py",
        "tests/methods/sae/test_calibrate.py",
        ("torch.where(separable, q + margin * (typical - q), q)", "q + margin * (typical - q)"),
        ("q + margin * (typical - q), q)", "q + margin * typical, q)"),
        ("torch.where(floor > q, torch.minimum(t, (q + floor) / 2), t)", "t"),
        ("q = loudest.clamp(min=0)", "q = loudest"),
        ("separable = typical > q", "separable = typical < q"),
        ("concept.amax(1).median(0).values", "concept.amax(1).amax(0)"),
        ("by_prompt[int(BENIGN_SHARE * len(by_prompt))]", "by_prompt[0]"),
        ("BENIGN_SHARE = 0.01", "BENIGN_SHARE = 0.02"),
    ),
    *of(
        "excise/erasers/edits/gated_sae.py",
        "tests/methods/steering/test_steering.py::test_a_prompt_that_is_changed_by_less_than_the_floor_keeps_its_bits"
        " tests/methods/steering/test_steering.py::test_itd_spares_prompts_that_it_would_change_by_little",
        ("change.new_tensor(self.floor), equal=True", "change.new_tensor(0.0), equal=True"),
        ("change.new_tensor(self.floor), equal=True", "change.new_tensor(self.floor), equal=False"),
        ("delta.square().sum(-1).mean(1)", "delta.square().sum(-1).sum(1)"),
    ),
    *of(
        "excise/erasers/edits/block_sae.py",
        "tests/erasers/edits/test_block_sae.py::test_the_edit_is_the_papers_formula"
        " tests/erasers/edits/test_block_sae.py::test_a_neuron_is_left_alone_at_a_step_whose_gate_is_infinite"
        " tests/erasers/edits/test_block_sae.py::test_an_impossible_edit_is_refused"
        " tests/erasers/edits/test_block_sae.py::test_the_nearest_timestep"
        " tests/erasers/edits/test_block_sae.py::test_a_picture_is_open_or_silent_as_a_whole"
        " tests/erasers/edits/test_block_sae.py::test_a_silent_picture_does_not_open_whatever_its_cut"
        " tests/erasers/edits/test_block_sae.py::test_each_run_goes_on_from_its_own"
        " tests/erasers/edits/test_block_sae.py::test_a_picture_that_opened_stays_open_until_another_is_drawn"
        " tests/erasers/edits/test_block_sae.py::test_patches_below_the_gate_keep_their_bits",
        ("torch.where(codes > gate, gamma * level * codes, codes)", "torch.where(codes > gate, gamma * codes, codes)"),
        ("torch.where(codes > gate, gamma * level * codes, codes)", "gamma * level * codes"),
        ("any(self._edited[step] for step in steps)", "True"),
        ('infinite=("gate",)', 'infinite=("gate", "cut")'),
        ('infinite=("gate",)', "infinite=()"),
        ("strength * (z - turned)", "strength * (turned - z)"),
        ("delta = delta + strength * 2 * (x.to(z.dtype) - made)", "delta = delta + strength * (x.to(z.dtype) - made)"),
        ("rows_at(self.cut, steps).to(preacts).clamp(min=0)", "rows_at(self.cut, steps).to(preacts)"),
        ("level = z.mean(1)\n", "level = z.amax(1)\n"),
        ("abs(known[near] - timestep) > 1e-3", "abs(known[near] - timestep) > 1e9"),
        ("self._masks[size, run] = mask = mask | self._masks[size, run]", "self._masks[size, run] = mask"),
        ("if timestep > self._now or", "if"),
    ),
    *of(
        "excise/erasers/artefact/canary.py",
        "tests/erasers/guard/test_canary.py",
        ("return relative if math.isfinite(relative) else 0.0", "return relative"),
        ("(a - b).norm() / b.norm().clamp(min=1e-12)", "(a - b).norm()"),
    ),
    *of(
        "excise/erasers/guard/canary.py",
        "tests/erasers/guard/test_canary.py",
        ('moved[f"{len(rows) - seen} of {len(rows)} positions"] = 0.0',
         'moved[f"{len(rows) - seen} of {len(rows)} positions"] = 1.0'),
        ("if seen < len(rows):", "if False:"),
        ("if a.shape != b.shape or not torch.equal(a, b)]", "]"),
    ),
    *of(
        "excise/erasers/guard/model_digest.py",
        "tests/erasers/guard/test_model_digest.py",
        ("return bool(known) and _digest(encoder, HALF, naming) in known", "return bool(known)"),
        ("naming = canonical if made.get", "naming = plain if made.get"),
        ("sorted({direct, via_half})", "[direct]"),
        ("sorted({direct, via_half})", "[via_half]"),
        ("json.dumps([list(i) for i in ids])", "json.dumps([])"),
        ("digest = _vocabulary_digest(tokenizer.get_vocab())", "digest = _vocabulary_digest({})"),
        ("if known == vocabulary:", "if len(known) == len(vocabulary):"),
        ('out.append(f"there is no {name}")\n        elif not isinstance(known.get(name), dict)',
         'pass\n        elif not isinstance(known.get(name), dict)'),
        ("!= tokenizers.get(name):", "== tokenizers.get(name):"),
    ),
    *of(
        "excise/erasers/artefact/weight_digest.py",
        "tests/erasers/guard/test_model_digest.py",
        ("digest.update(tensor.cpu()", "(tensor.cpu()"),
        ('digest.update(f"{short}{tuple(tensor.shape)}".encode())', "pass"),
        ('if short != "encoder.embed_tokens.weight"', "if short"),
        ('_LANGUAGE.sub("", short)', "short"),
        ("if not _OTHERS.match(name)", "if name"),
    ),
    *of(
        "excise/erasers/artefact/formats.py",
        "tests/erasers/test_eraser.py::test_the_format_follows_the_names_of_the_digests",
        ("if schema != stated or", "if"),
        ('or files["manifest.json"] != manifest(files, schema):', ":"),
    ),
    *of(
        "excise/erasers/artefact/files.py",
        "tests/erasers/test_eraser.py::test_any_flipped_byte_is_noticed"
        " tests/erasers/test_eraser.py::test_truncated_or_missing_files_are_noticed"
        " tests/erasers/test_eraser.py::test_descriptions_that_are_not_json_are_refused"
        " tests/erasers/test_eraser.py::test_it_comes_back_as_it_was_and_is_kilobytes",
        ('if files["manifest.json"] not in [', 'if False and files["manifest.json"] not in ['),
        ("{name: sha256(files[name]) for name in FILES[:2]}", "{name: sha256(files[name]) for name in FILES[:1]}"),
        ("allow_nan=False", "allow_nan=True"),
    ),
    *of(
        "excise/erasers/artefact/record.py",
        "tests/erasers/test_eraser.py::test_how_far_the_canary_moved_is_kept",
        ('"canary_shift": float(self.canary_shift)', '"canary_shift": 0.0'),
    ),
    *of(
        "excise/erasers/guard/denoiser.py",
        "tests/erasers/guard/test_denoiser.py"
        " tests/erasers/test_bypasses.py::test_embeddings_encoded_before_the_eraser_was_enabled"
        " tests/erasers/test_bypasses.py::test_the_unconditional_branchs_embeddings_through_a_pipeline_of_the_same_"
        "components"
        " tests/erasers/test_bypasses.py::test_an_eraser_switched_on_while_a_prompt_is_in_the_encoder"
        " tests/erasers/test_bypasses.py::test_a_negative_prompts_embeddings_in_the_prompts_place",
        ("return int(spared.sum()) <= int(prompts.sum())", "return True"),
        ("if self._known(state, record):", "if True:"),
    ),
    *of(
        "excise/erasers/guard/denoiser.py",
        "tests/erasers/guard/test_accepted.py",
        ("if before.generation != generation:", "if False:"),
        ("> SETTINGS, but=(setting, *self._in_use()))", "> SETTINGS, but=(setting,))"),
        ("if accepted:", "if True:"),
        ("        self._accepted.clear()\n", "",
         "the records are new after it, so that no call before counts; this only frees the copies"),
    ),
    *of(
        "excise/erasers/guard/accepted.py",
        "tests/erasers/guard/test_accepted.py",
        ("look.under == under and ", ""),
        (" and _signature(look.states) == _signature(states)]", "]"),
        ("all(map(torch.equal, states, look.states))", "any(map(torch.equal, states, look.states))"),
        ("torch.stack([(a == b).all() for a, b in zip(states, look.states, strict=True)]).all()",
         "(states[0] == look.states[0]).all()"),
        ("[:MOST]", ""),
    ),
    *of(
        "excise/erasers/hooks/counters.py",
        "tests/erasers/hooks/test_counters.py",
        ("(before[0] + rows, before[1] + norm)", "(rows, norm)"),
        ("self._rows += int(rows)", "self._rows = int(rows)"),
    ),
    *of(
        "excise/erasers/apply/weights.py",
        "tests/erasers/apply/test_weight_sums.py",
        ("source.cdata, state.storage_offset(), version_of(state), state.device",
         "state.data_ptr(), state.storage_offset(), version_of(state), state.device"),
        ("version_of(state), state.device, state.dtype", "state.device, state.dtype"),
        ("if not known.images]", "]"),
        ("idle[:-KEPT]", "[]"),
    ),
    *of(
        "excise/erasers/hooks/setting.py",
        "tests/erasers/test_settings.py"
        " tests/erasers/test_setting_races.py::test_a_copied_context_brings_no_setting_of_another_thread"
        " tests/erasers/test_setting_races.py::test_a_pipeline_call_that_yields_keeps_its_setting"
        " tests/erasers/test_generating.py"
        " tests/erasers/test_setting_races.py::test_the_setting_of_an_interrupted_run_is_not_taken_for_a_later_one"
        " tests/erasers/test_bypasses.py::test_embeddings_encoded_before_the_eraser_was_enabled",
        ("((host.encoded_by or host).number, host.strength) for", "((host.encoded_by or host).number, 1.0) for"),
        ("((host.encoded_by or host).number, host.strength) for host in active", "(0, 0.0) for host in ()"),
        ("return setting.strengths.get(host.number, 0.0)", "return None"),
        ("        frame.f_locals[_KEY] = self\n", ""),
        ("        strengths |= request()\n", "        pass\n"),
        ("if there is None or number in there}", "}"),
        ("is not None and setting.is_here", "is not None"),
        ("is not None and setting.is_here", "is not None and setting.in_use"),
        ("is not None and not setting.ended:\n        return", "is not None:\n        return"),
        ("for number in setting.strengths if setting.in_use}", "for number in ()}"),
        ("return self._pauses or self.is_here", "return self.is_here"),
    ),
    *of(
        "excise/erasers/hooks/observers.py",
        "tests/erasers/hooks/test_observers.py tests/erasers/test_routes.py",
        ("copies = copied(given)", "copies = given"),
        ("if returned and same(copies, given):", "if returned:"),
        ("if returned and same(copies, given):", "if same(copies, given):"),
        ("if not same(self._given, (args, kwargs)):", "if False:"),
        ("new.pop(number).refuse()", "new.pop(number)"),
        ("if not hook.hosts and number in hooks:", "if False:"),
    ),
    *of(
        "excise/erasers/edits/vectors.py",
        "tests/methods/steering/test_steering.py",
        ("return strength * self.beta * along.clamp(min=0) * s", "return strength * self.beta * along * s"),
        ("* self.beta * along.clamp(min=0) * s", "* along.clamp(min=0) * s"),
        ('{"none": 0.0, "same": 1.0, "flip": -1.0}', '{"none": 0.0, "same": 1.0, "flip": 1.0}'),
    ),
    *of(
        "excise/erasers/edits/projection.py",
        "tests/methods/steering/test_conditions.py::test_words_near_the_concept_are_projected_as_the_paper_says"
        " tests/methods/steering/test_conditions.py::test_a_word_is_measured_against_the_others_alone"
        " tests/methods/steering/test_conditions.py::test_low_frequencies_that_grew_are_weakened"
        " tests/methods/steering/test_conditions.py::test_a_prompt_without_each_of_its_words",
        ("hit = distance >= (1 + self.alpha) * others", "hit = distance <= (1 + self.alpha) * others"),
        ("(distance.sum() - distance) / max(1, len(distance) - 1)", "distance.sum() / len(distance)"),
        ("chosen[1 : 1 + len(hit)] = hit", "chosen[: len(hit)] = hit"),
        ("words = slice(0, count + 2)", "words = slice(0, count)"),
        ("return round(self.most * share) + 1", "return round(self.most * share)"),
    ),
    *of(
        "excise/erasers/apply/conditioning.py",
        "tests/methods/steering/test_conditions.py::test_low_frequencies_that_grew_are_weakened",
        ("changed.abs() > before.abs()", "changed.abs() < before.abs()"),
        ("low[0, 0] = low[0, -1] = low[-1, 0] = low[-1, -1] = True", "low[0, 0] = True"),
    ),
    *of(
        "excise/erasers/apply/guidance.py",
        "tests/methods/steering/test_sld.py",
        ("here.nu = edit.decay * here.nu + (1 - edit.decay) * gamma", "here.nu = gamma"),
        ("gamma = gamma + edit.momentum * here.nu", "gamma = gamma"),
        ("if self.step_of(call) < edit.warmup:", "if self.step_of(call) <= edit.warmup:"),
        ("own[prompts] - self.attachment.strength * gamma", "own[prompts] - gamma"),
    ),
    *of(
        "excise/erasers/edits/weights.py",
        "tests/methods/trained/test_spm.py::test_permeability_is_the_larger_likeness",
        ("return max(0.0, *near, *shared)", "return max(0.0, *near)"),
        ("return max(0.0, *near, *shared)", "return max(*near, *shared)",
         "a share of tokens is never below 0, so the largest is not either; the 0 says it for an empty list of words"),
        ("len(tokens & set(ids)) / max(1, len(tokens))", "len(tokens & set(ids)) / max(1, len(ids))"),
    ),
]  # fmt: skip
