"""What the methods minimise, what they are set to by default, and how a training goes on."""

from __future__ import annotations

from tests.mutants import of

MUTANTS = [
    *of(
        "excise/methods/configs/sae.py",
        "tests/methods/sae/test_snce.py::test_the_defaults_are_the_measured_ones",
        ("        1.25,\n", "        1.0,\n"),
        ("        0.02,\n        \"Largest deconcept", "        0.0,\n        \"Largest deconcept"),
        ("        0.02,\n        \"Position of the threshold", "        0.1,\n        \"Position of the threshold"),
    ),
    *of(
        "excise/methods/sae/snce.py",
        "tests/methods/sae/test_snce.py::test_the_defaults_are_the_measured_ones"
        " tests/methods/sae/test_snce.py::test_a_neuron_that_does_not_carry_the_concept_is_refused"
        " tests/methods/sae/test_snce.py::test_fit_makes_an_eraser_that_spares_controls"
        " tests/methods/sae/test_snce.py"
        "::test_a_neuron_that_fires_at_the_start_of_every_prompt_is_calibrated_without_it"
        " tests/methods/sae/test_snce.py::test_lambda_one_takes_out_the_whole_mean_change"
        " tests/methods/sae/test_snce.py::test_the_share_that_a_neuron_carries_against_its_definition",
        ("lead = min(side.lead for side in", "lead = 0 * min(side.lead for side in"),
        ("without if controls is None else without.with_more(controls)", "without"),
        ("if not bool(levels.separable[0]):", "if False:"),
        ("concept.pairs[int(loudness.argmax())].concept", "concept.pairs[int(loudness.argmin())].concept"),
    ),
    *of(
        "excise/methods/sae/replacing.py",
        "tests/methods/sae/test_replacing.py::test_which_position_of_another_prompt_corresponds"
        " tests/methods/sae/test_replacing.py::test_another_prompt_may_be_padded_to_another_length"
        " tests/methods/sae/test_replacing.py::test_the_moves_leave_least"
        " tests/methods/sae/test_replacing.py::test_neurons_with_equal_codes_share_the_move"
        " tests/methods/sae/test_replacing.py::test_the_move_against_loops"
        " tests/methods/sae/test_replacing.py::test_padding_that_no_mask_leaves_out_is_cut_to_its_first"
        " tests/methods/sae/test_replacing.py::test_where_a_prompt_stands_between_padding"
        " tests/methods/sae/test_replacing.py::test_the_move_of_every_encoder_against_loops[qwen-image]",
        ("@ (z.T @ apart)", "@ (z.T @ -apart)"),
        ("torch.linalg.pinv(z.T @ z, hermitian=True)", "torch.eye(z.shape[1], dtype=z.dtype) / len(z)"),
        ("share = 1 - float(", "share = float("),
        ("(own.states - other.states[places", "(own.states + 0 * other.states[places"),
        ("ids[end - 1] == ids[end - 2] == padding", "False"),
        ("slice(start, end) if masked else", "slice(start, end) if False else"),
        ("other = others[len(apart)]", "other = others[0]"),
        ("(ids[-1] == padding) != (other_ids[-1] == padding)", "False"),
        ("max(0, other.start - own.start + n)", "max(0, other.start + n)"),
        ("[other.start + n for n in within]", "[own.start + n for n in within]"),
        ("len(own.states) - own.start, len(", "len(own.states), len("),
        ("place = max(n, len(other))", "place = n"),
        ("place = n - len(own) + len(other)", "place = n"),
        ("head if tail < len(other) - head else head - 1", "head"),
        ("head if tail < len(other) - head else head - 1", "head - 1"),
        ("other_length - 1))", "other_length))"),
    ),
    *of(
        "excise/concepts/instead.py",
        "tests/concepts/test_instead.py",
        ("LEAST = 5", "LEAST = 4"),
        ("return without <= with_it or bool(", "return False or bool("),
        (" or bool(_EMPTY.search(pair.deconcept))", ""),
        ("if names_minors(word):", "if False:"),
        ("if own := mentioned(word, concept.mentions):", "if own := None:"),
        ("word if _ARTICLE.match(word) else with_article(word)", "with_article(word)"),
    ),
    *of(
        "excise/methods/configs/sae.py",
        "tests/methods/sae/test_replacing.py::test_settings_that_do_not_go_together",
        ('if self.replace_with and self.source != "prompt":', "if False:"),
    ),
    *of(
        "excise/erasers/artefact/strength.py",
        "tests/methods/sae/test_snce.py::test_the_defaults_are_the_measured_ones",
        ("LEAST_CARRIED = 0.25", "LEAST_CARRIED = 0.0"),
    ),
    *of(
        "excise/methods/prompt_codes.py",
        "tests/methods/sae/test_snce.py::test_a_first_state_counts_as_the_same_up_to_rounding"
        " tests/methods/sae/test_snce.py::test_a_first_state_in_half_precision_is_the_same_relative_to_the_words"
        " tests/methods/sae/test_snce.py::test_the_share_that_a_neuron_carries_against_its_definition"
        " tests/methods/sae/test_snce.py::test_pooled_alignment_is_one_mean_for_every_position"
        " tests/methods/sae/test_snce.py::test_lambda_one_takes_out_the_whole_mean_change",
        ("SAME, ROUNDING = 1e-3, 0.01", "SAME, ROUNDING = 1e-1, 0.01"),
        ("SAME, ROUNDING = 1e-3, 0.01", "SAME, ROUNDING = 1e-3, 0.1"),
        ("if self.scored[:, 0].any():\n            return 0", "if False:\n            return 0"),
        ("return min(shares)", "return max(shares)"),
        ("subtracted @ change / (change @ change)", "subtracted @ change / (change @ change).sqrt()"),
        ("        codes[0] = 0\n", ""),
        ("plain = replace(edit, lam=1.0)", "plain = edit"),
    ),
    *of(
        "excise/methods/configs/closed_form.py",
        "tests/methods/closed_form/test_closed_form.py::test_the_weights_are_the_authors_own",
        ("lam: float = setting(0.5,", "lam: float = setting(0.1,"),
    ),
    *of(
        "excise/methods/configs/sae.py",
        "tests/methods/steering/test_steering.py::test_itd_s_floor_is_a_share_of_the_least_change_of_a_concept_prompt",
        ("        0.99,\n        \"A prompt is edited", "        0.5,\n        \"A prompt is edited"),
    ),
    *of(
        "excise/methods/closed_form/speed.py",
        "tests/methods/closed_form/test_speed.py",
        ("erased.T @ erased / len(erased) @ null + scale * one", "erased.T @ erased @ null + scale * one"),
        ("+ lam * torch.eye(fixed.shape[1], dtype=null.dtype)", "- lam * torch.eye(fixed.shape[1], dtype=null.dtype)"),
        ("@ torch.linalg.pinv(held) @ fixed.T @ null)", "@ torch.linalg.pinv(held) @ fixed.T)"),
        ("erased.mean(0, keepdim=True) - covariance", "erased.mean(0, keepdim=True) + covariance"),
        ("above = moved > moved.mean()", "above = moved < moved.mean()"),
        ("if bool(above.any()) else states", ""),
        ("torch.linalg.svd(weight, full_matrices=False).Vh[-1]", "torch.linalg.svd(weight, full_matrices=False).Vh[0]"),
        ("values < limit", "values > limit"),
        ("apart.argmax()", "apart.argmin()"),
        ("(anchor - erased).T / len(erased)", "(anchor - erased).T"),
    ),
    *of(
        "excise/methods/trained/hirm.py",
        "tests/methods/trained/test_hirm.py",
        ("BETAS, EPS = (0.9, 0.98), 1e-6", "BETAS, EPS = (0.9, 0.999), 1e-6"),
        ("config.alpha * towards.float() / towards.float().norm()", "config.alpha * towards.float()"),
        ("_layers(self.encoder)[-1].self_attn.out_proj", "_layers(self.encoder)[0].self_attn.out_proj"),
        ("(start + n) % len(self._ids)", "n % len(self._ids)"),
        ("first, paths = _layers(encoder)[0],", "first, paths = _layers(encoder)[1],"),
    ),
    *of(
        "excise/methods/steering/stg.py",
        "tests/methods/steering/test_stg.py::test_the_detector_learns_what_the_model_draws"
        " tests/methods/steering/test_stg.py::test_it_tells_pictures_apart",
        ("guided = without + config.guidance * (own - without)", "guided = own"),
        ("if stop < call.timestep <= start:", "if call.timestep <= start:"),
        ("torch.cat([torch.ones(config.batch), torch.zeros(config.batch)])",
         "torch.cat([torch.zeros(config.batch), torch.ones(config.batch)])"),
        ("seeds[first : first + len(some)]", "seeds[: len(some)]"),
    ),
    *of(
        "excise/methods/steering/leace.py",
        "tests/methods/steering/test_leace.py",
        ("weights = z * share / len(shown) +", "weights = z * (1 - share) / len(shown) +"),
        ("return mean, read / (read @ along), along", "return mean, read / read.norm(), along"),
        ("read = torch.linalg.pinv(both, rtol=SMALL, hermitian=True) @ along", "read = both @ along"),
        ("mean = weights @ x", "mean = x.mean(0)"),
        ("row[end:] for row, (end, _)", "row[end + 1 :] for row, (end, _)"),
    ),
    *of(
        "excise/methods/closed_form/uce.py",
        "tests/methods/closed_form/test_closed_form.py::test_the_weights_are_the_authors_own"
        " tests/methods/closed_form/test_closed_form.py::test_uce_minimises_its_objective"
        " tests/methods/closed_form/test_closed_form.py::test_the_embedding_that_brings_a_word_back_is_the_nearest"
        " tests/methods/closed_form/test_closed_form.py::test_rece_erases_what_brings_the_concept_back_round_by_round",
        ("+ keep * p.T @ p", "+ p.T @ p"),
        ("held = lam * torch.eye", "held = torch.eye"),
        ("torch.linalg.solve(held, erase * c.T)", "torch.linalg.solve(held, c.T)"),
        ("@ (guide - erased).T, down=down)", "@ (erased - guide).T, down=down)"),
    ),
    *of(
        "excise/methods/closed_form/rece.py",
        "tests/methods/closed_form/test_closed_form.py::test_the_weights_are_the_authors_own"
        " tests/methods/closed_form/test_closed_form.py::test_uce_minimises_its_objective"
        " tests/methods/closed_form/test_closed_form.py::test_the_embedding_that_brings_a_word_back_is_the_nearest"
        " tests/methods/closed_form/test_closed_form.py::test_rece_erases_what_brings_the_concept_back_round_by_round",
        ("left = rho * torch.eye", "left = torch.eye"),
        ("right = torch.stack([w.T @ w0 for", "right = torch.stack([w0.T @ w0 for"),
        ("for round_ in range(config.rounds + 1):", "for round_ in range(config.rounds):"),
        ("            now[n] = weight + ups[n][-1] @ downs[-1]\n", ""),
    ),
    *of(
        "excise/methods/sae/itd.py",
        "tests/methods/steering/test_steering.py::test_itd_s_features_are_the_concept_s_alone"
        " tests/methods/steering/test_steering.py::test_itd_s_floor_is_a_share_of_the_least_change_of_a_concept_prompt"
        " tests/methods/steering/test_steering.py::test_itd_spares_prompts_that_it_would_change_by_little",
        ("least = float(changes[changes > 0].min())", "least = float(changes[changes > 0].max())"),
        ("floor=config.share * least)", "floor=0.0)"),
        ("lam=1 - config.factor, floor=0.0)", "lam=-config.factor, floor=0.0)"),
        ("if neuron not in kept]", "]"),
        ('least = least.scatter_reduce(0, some.indices.flatten(), values, "amin")',
         'least = least.scatter_reduce(0, some.indices.flatten(), values, "amax", include_self=False)'),
        ("return least[indices] * (1 - 1e-6)", "return least[indices] * (1 + 1e-6)"),
    ),
    *of(
        "excise/methods/sae/block_levels.py",
        "tests/methods/sae/test_block_levels.py",
        ("(self.own + self.kinds * self.others) / (self.kinds + 1)", "(self.own + self.others) / 2"),
        ("(shown.centre - others.centre).float()", "(others.centre - shown.centre).float()"),
        ("q + margin * (typical - q).clamp(min=0)", "q + margin * (typical - q)"),
        ('math.sqrt(found.variance) if config.units == "deviation"', 'found.variance if config.units == "deviation"'),
        ("level = 1 / share.clamp(min=LEAST_CARRIED)", "level = 1 / share"),
        ("[pair.deconcept for pair in spread], config, config.seed + count)",
         "[pair.deconcept for pair in spread], config, config.seed)"),
    ),
    *of(
        "excise/methods/sae/coupling.py",
        "tests/methods/sae/test_coupling.py",
        ("mean * (unit @ unit[list(neurons)].T).abs().amax(1)", "mean * (unit @ unit[list(neurons)].T).amax(1)"),
        ("mean * (unit @ unit[list(neurons)].T).abs().amax(1)", "mean * (unit @ unit[list(neurons)].T).abs().mean(1)"),
        ("mean * (unit @ unit[list(neurons)].T).abs().amax(1)", "(unit @ unit[list(neurons)].T).abs().amax(1)"),
        ("torch.where(codes.scored[..., None], codes.values.double(), 0.0)", "codes.values.double()"),
        ("    found[list(neurons)] = 0\n", ""),
        ("argsort(descending=True, stable=True)", "argsort(descending=False, stable=True)"),
        ("if found[i] > 0]", "]"),
    ),
    *of(
        "excise/methods/sae/saeuron.py",
        "tests/methods/sae/test_block_levels.py::test_saeuron_edits_at_each_step_what_scores_there",
        ("torch.where(chosen[:, neurons], edit.gate, torch.inf)", "edit.gate"),
        ("score(found.own, found.others)", "score(found.others, found.own)"),
    ),
    *of(
        "excise/methods/trained/esd.py",
        "tests/methods/trained/test_esd.py::test_the_loss_is_equation_7",
        ("return without - eta * (with_it - without)", "return without + eta * (with_it - without)"),
        ("return without - eta * (with_it - without)", "return without - (with_it - without)"),
        ("return without - eta * (with_it - without)", "return without - eta * with_it"),
        ("esd_target(with_it, without, config.eta)", "esd_target(without, with_it, config.eta)"),
        ("erasing_loss(pipe, student, teacher, teacher, word", "erasing_loss(pipe, student, teacher, student, word"),
        ("F.mse_loss(student(latents, timestep, *word.", "F.mse_loss(student(latents, timestep, *empty."),
    ),
    *of(
        "excise/methods/trained/spm.py",
        "tests/methods/trained/test_spm.py::test_the_loss_is_the_paper_s"
        " tests/methods/trained/test_spm.py::test_anchors_have_about_the_length_of_the_concept",
        ("return erasing + config.anchoring * anchoring", "return erasing + anchoring"),
        ("erasing_loss(pipe, student, teacher, student, word", "erasing_loss(pipe, teacher, student, student, word"),
        ("erasing_loss(pipe, student, teacher, student, word", "erasing_loss(pipe, student, teacher, teacher, word"),
        ("scale = 0.8 + 0.4 *", "scale = 0.8 + 0.8 *"),
    ),
    *of(
        "excise/methods/trained/ca.py",
        "tests/methods/trained/test_ca.py::test_the_loss_is_the_papers",
        ('if config.variant == "model" else made.target', 'if config.variant == "noise" else made.target'),
        ("missed + config.keep * diffusion_loss", "missed + diffusion_loss"),
    ),
    *of(
        "excise/methods/trained/sa.py",
        "tests/methods/trained/test_sa.py::test_the_losses_are_the_papers"
        " tests/methods/trained/test_sa.py::test_the_fisher_information_is_the_mean_of_squared_gradients"
        " tests/methods/trained/test_sa.py::test_what_is_held_fast_is_weighed_by_it",
        ("return lam / 2 * torch.stack(parts).sum()", "return lam * torch.stack(parts).sum()"),
        ("own += slope.square() / len(pictures.prompts)", "own += slope.abs() / len(pictures.prompts)"),
        ("learnt + config.keep * diffusion_loss", "learnt + diffusion_loss"),
        ("summed = schedule.config.num_train_timesteps * F.mse_loss", "summed = F.mse_loss"),
    ),
    *of(
        "excise/methods/trained/mace.py",
        "tests/methods/trained/test_mace.py::test_the_closed_forms_minimise_what_the_paper_says"
        " tests/methods/trained/test_mace.py::test_the_loss_is_equation_3"
        " tests/methods/trained/test_mace.py::test_the_density_is_equation_5",
        ("(config.gamma * (t - config.t1)).sigmoid() - (config.gamma * (t - config.t2)).sigmoid()",
         "(config.gamma * (t - config.t1)).sigmoid()"),
        ("return chances / chances.sum()", "return chances / chances.max()"),
        ("* M).square().sum() / config.batch", "* M).sum() / config.batch"),
        ("F.adaptive_max_pool2d(one.mask[None], size)", "F.adaptive_avg_pool2d(one.mask[None], size)"),
        ("@ (others - words).T @ down", "@ (words - others).T @ down"),
    ),
    *of(
        "excise/methods/trained/dumo.py",
        "tests/methods/trained/test_dumo.py::test_the_loss_of_both_trainings"
        " tests/methods/trained/test_dumo.py::test_prompts_without_the_concept_are_kept",
        ("return erasing + config.keep * F.mse_loss", "return erasing + F.mse_loss"),
        ("if not mentioned(text, concept.mentions)", "if text"),
        ("erasing_loss(pipe, student, teacher, student, word", "erasing_loss(pipe, teacher, student, student, word"),
        ("erasing_loss(pipe, student, teacher, student, word", "erasing_loss(pipe, student, teacher, teacher, word"),
    ),
    *of(
        "excise/methods/trained/receler.py",
        "tests/methods/trained/test_receler.py::test_the_second_term_is_the_mean_square_outside_of_the_mask"
        " tests/methods/trained/test_receler.py::test_adapters_add_nothing_at_first"
        " tests/methods/trained/test_receler.py::test_the_loss_is_the_paper_s"
        " tests/methods/trained/test_receler.py::test_the_learnt_prompt_is_what_brings_the_concept_back",
        ("return F.mse_loss(made.float(), target.float()) + config.keep",
         "return F.mse_loss(made.float(), target.float()) + 0"),
        ("esd_target(with_it, without, config.eta)", "esd_target(without, with_it, config.eta)"),
        ("rest = 1 - F.adaptive_max_pool2d", "rest = F.adaptive_max_pool2d"),
        ("F.adaptive_max_pool2d(mask", "F.adaptive_avg_pool2d(mask"),
        ("rest.sum().clamp(min=1)", "rest.numel()"),
        ("return total / len(outputs)", "return total"),
        (".ge(config.threshold).float()", ".le(config.threshold).float()"),
        ("            self.pipe, self.student, side, self.empty",
         "            self.pipe, frozen_unet(self.pipe), side, self.empty"),
        ("weight_decay=DECAY)", "weight_decay=0)"),
        ("F.mse_loss(made.float(), wanted.float()), [learnt])", "-F.mse_loss(made.float(), wanted.float()), [learnt])"),
        ("[own[: word.end], learnt.to(own), own[word.end + count :]]", "[own[:1], learnt.to(own), own[1 + count :]]"),
        ("torch.rand(count, own.shape[1]", "torch.randn(count, own.shape[1]"),
        ("/ site.width**0.5", "/ site.width"),
        ("states = self.worst(latents, timestep, word, with_it, generator)",
         "states = self.worst(latents, timestep, word, without, generator)"),
    ),
    *of(
        "excise/methods/trained/attention_maps.py",
        "tests/methods/trained/test_receler.py::test_the_loss_is_the_paper_s",
        ("own = [A[..., list(words)].mean((1, 3))", "own = [A[..., list(words)].amax((1, 3))"),
        ("return (maps - low) / (high - low)", "return maps / high"),
    ),
    *of(
        "excise/methods/trained/advunlearn.py",
        "tests/methods/trained/test_advunlearn.py::test_the_loss_is_the_paper_s"
        " tests/methods/trained/test_advunlearn.py::test_the_attack_s_token_stands_before_the_word",
        ("return erasing + config.keep * F.mse_loss", "return erasing + F.mse_loss"),
        ("pushed = torch.cat([ids[:, :1], ids[:, :-1]], 1)", "pushed = ids.clone()"),
        ("            adam.step()\n        return token.detach()", "        return token.detach()"),
        ("esd_target(with_it, without, config.eta)", "without"),
        ("esd_target(with_it, without, config.eta)", "esd_target(without, with_it, config.eta)"),
    ),
    *of(
        "excise/methods/steering/sld.py",
        "tests/methods/steering/test_sld.py",
        ('"strong": (7, 2000.0, 0.025, 0.5, 0.7)', '"strong": (7, 2000.0, 0.01, 0.5, 0.7)'),
        ("scale=config.scale or scale", "scale=scale"),
    ),
    *of(
        "excise/methods/trained/sampling.py",
        "tests/methods/trained/test_esd.py::test_pictures_are_drawn_as_the_pipeline_draws_them"
        " tests/methods/trained/test_mace.py::test_noise_is_that_of_the_timestep"
        " tests/methods/trained/test_ca.py::test_finished_pictures_are_the_pipelines",
        ("share.sqrt() * clean + (1 - share).sqrt() * noise", "share * clean + (1 - share) * noise"),
        ("Tensor = without + guidance * (with_it", "Tensor = with_it + guidance * (with_it"),
        ("return scheduler, noise * scheduler.init_noise_sigma", "return scheduler, noise",
         "every scheduler that the tests draw with begins at σ = 1 here"),
        ("timestep = scheduler.timesteps[done]\n", "timestep = scheduler.timesteps[done - 1]\n"),
    ),
    *of(
        "excise/methods/trained/trainer.py",
        "tests/methods/trained/test_esd.py::test_an_interrupted_training_goes_on_to_the_same_bits"
        " tests/methods/trained/test_esd.py::test_changed_weights_are_summed_once_until_they_change"
        " tests/methods/trained/test_esd.py::test_what_is_attached_does_not_teach",
        ("        adam.load_state_dict({**adam.state_dict(), \"state\": moments})\n", ""),
        ('if state["training"] != which:', "if False:"),
        ("if self._made is not None and self._made[0] == now and", "if self._made is not None and"),
    ),
    *of(
        "excise/methods/trained/trainer.py",
        "tests/methods/trained/test_trainer.py",
        ("config.seed * 1_000_003 + len(losses)", "config.seed * 1_000_003"),
        ("config.seed * 1_000_003 + len(losses)", "len(losses)"),
    ),
    *of(
        "excise/methods/steering/casteer_gated.py",
        "tests/methods/steering/test_casteer_gated.py",
        ("TINY = 0.99, 0.2", "TINY = 0.95, 0.2"),
        ("0.99, 0.2, 10", "0.99, 0.3, 10"),
        ("0.2, 10, 0.25", "0.2, 5, 0.25"),
        ("10, 0.25, 1e-6", "10, 0.1, 1e-6"),
        ("scales(seen[fold != part])", "scales(seen)"),
        ("((TAIL / share) ** (1 / k) - 1)", "((1 / share) ** (1 / k) - 1)"),
        ("float(above.mean()) * k * ((TAIL / share) ** (1 / k) - 1)", "float(above.mean()) * math.log(TAIL / share)"),
        ("above = ratios[ratios > start] - start", "above = ratios[ratios > start]"),
        ("concept.pairs[config.pairs :]], concept.benign", "concept.pairs], concept.benign"),
        (".amax(1).reshape(-1, pictures).amax(0)", ".amax(1).reshape(-1, pictures)[-1]"),
        ("if not mentioned(prompt, concept.mentions)", "if prompt not in concept.mentions"),
    ),
]  # fmt: skip
