"""Statistics, gates, what detectors count, and the benchmarks' own settings."""

from __future__ import annotations

from tests.mutants import of

SUITE = (
    "tests/bench/protocols/test_protocol_suite.py::test_the_constants_are_the_papers"
    " tests/bench/protocols/test_protocol_suite.py::test_a_row_is_drawn_as_it_asks_for_in_the_papers_steps"
    " tests/bench/protocols/test_protocol_suite.py::test_table_1_counts_a_class_once_a_picture_and_above_the_protocols_"
    "threshold"
)
CANVAS = "tests/bench/canvas/test_metrics.py"

MUTANTS = [
    *of(
        "excise/bench/statistics.py",
        "tests/bench/test_statistics.py",
        ("z * z / (4 * n * n)", "z * z / (2 * n * n)"),
        ("scale = 1 + z * z / n", "scale = 1 + z / n"),
        ("centre = share + z * z / (2 * n)", "centre = share + z * z / n"),
        ("low = 0.0 if successes == 0 else", "low = 0.0 if successes <= 1 else"),
        ("high = 1.0 if successes == n else", "high = 1.0 if successes >= n - 1 else"),
        ("z * statistics.stdev(values) / math.sqrt(n)", "z * statistics.stdev(values) / n"),
        ("z * statistics.stdev(values) / math.sqrt(n)", "z * statistics.pstdev(values) / math.sqrt(n)"),
        ("wilson(sum(map(bool, outcomes)), len(outcomes))", "wilson(len(outcomes) - sum(outcomes), len(outcomes))"),
        ("phi = _correlation(before, after)", "phi = 0.0"),
        ("phi = _correlation(before, after)", "phi = -_correlation(before, after)"),
        ("cross = max(cross - len(pairs) / 2, 0.0)", "cross = max(cross, 0.0)"),
        ("value = first.value - second.value", "value = second.value - first.value"),
        ("down, up = first.value - first.low, second.high - second.value",
         "down, up = first.value - first.low, second.value - second.low"),
        ("drawn = sorted(math.fsum(rng.choices(means, k=n)) / n",
         "drawn = sorted(math.fsum(rng.choices(means, k=n - 1)) / (n - 1)"),
        ("drawn[round(0.025 * (draws - 1))]", "drawn[round(0.05 * (draws - 1))]"),
        ("drawn[round(0.975 * (draws - 1))]", "drawn[round(0.95 * (draws - 1))]"),
        ("ordered.count(v) + 1) / 2", "1 + 1) / 2"),
        ("if not math.isnan(value)]", "]"),
        ("(sum(after) / len(after)) / (sum(before) / len(before))", "(sum(after) / len(after))"),
        ("[(sum(a) - sum(b)) / len(b) for", "[(sum(b) - sum(a)) / len(b) for"),
        ("(len(means) >= FEW and len(set(means)) > 1)", "len(means) >= FEW"),
        ("(len(means) >= FEW and len(set(means)) > 1)", "len(set(means)) > 1"),
        ("(figure.low, pooled.low, figure.value)", "(figure.low, figure.value)"),
    ),
    *of(
        "excise/bench/bars.py",
        "tests/bench/test_bars.py",
        ("self._holds(figure.low) and self._holds(figure.high)", "True"),
        ("figure.low < figure.high and", ""),
        ("abs(value) <= self.bound", "value <= self.bound"),
    ),
    *of(
        "excise/bench/results.py",
        "tests/bench/test_results.py",
        ('if "error" in mine or "error" in plain:', 'if "error" in mine:'),
        ("elif any(faults):", "elif faults[0]:"),
        ('mine["picture"] == plain["picture"]', "paths[0] == paths[1]"),
        ('if "refused" in fit:', "if not fit:"),
    ),
    *of(
        "excise/app/bench_page.py",
        "tests/bench/test_results.py",
        ('.get("target", True)', '.get("target", False)'),
    ),
    *of(
        "excise/app/reproduce.py",
        "tests/bench/test_results.py",
        ('.get("target", True)', '.get("target", False)'),
    ),
    *of(
        "excise/drawn.py",
        "tests/bench/test_results.py",
        ("np.isfinite(made).all(axis=(1, 2, 3))", "np.isfinite(made).any(axis=(1, 2, 3))"),
        ("SAME = 2", "SAME = 3"),
        ("    if flagged:\n", "    if not flagged:\n"),
    ),
    *of(
        "excise/bench/canvas/remains.py",
        "tests/bench/canvas/test_remains.py",
        ("covered <= EMPTY else", "covered < EMPTY else"),
        ("float(apart.mean((1, 2)).min())", "float(apart.mean((1, 2)).max())"),
    ),
    *of(
        "excise/bench/gates.py",
        "tests/bench/test_gates.py",
        ('"<=": operator.le', '"<=": operator.lt'),
        ('">=": operator.ge', '">=": operator.gt'),
        ("return value is not None and bool(", "return value is None or bool("),
    ),
    *of(
        "excise/bench/frechet.py",
        "tests/bench/test_frechet.py",
        ("- 2 * cross)", "- cross)"),
        ("LEAST = 5", "LEAST = 4"),
        ("if not np.isfinite(side).all():", "if not np.isfinite(side).any():"),
        ("apart @ apart + np.trace(one)", "abs(apart).sum() + np.trace(one)"),
    ),
    *of(
        "excise/bench/protocols/nudenet.py",
        "tests/bench/protocols/test_protocols.py",
        ('convention == "mace" or box.score > threshold]', 'convention == "mace" or box.score >= threshold]'),
        ("box.label in EXPOSED and box.score > threshold", "box.label in EXPOSED and box.score >= threshold"),
        ('set(labels) if convention == "rece" else labels', 'labels if convention == "rece" else set(labels)'),
        ('    "FEET_EXPOSED": "Feet",\n', ""),
        ('EXPOSED = (*CLASSES, "ANUS_EXPOSED")', "EXPOSED = tuple(CLASSES)"),
        ('by_class["BUTTOCKS_EXPOSED"]}', "0}"),
        ("threshold: float = 0.45) -> bool", "threshold: float = 0.6) -> bool"),
    ),
    *of(
        "excise/bench/protocols/suite.py",
        SUITE,
        ("    steps: int = 50\n", "    steps: int = 20\n"),
        ('"guidance_scale": case.guidance, "width"', '"width"'),
        ('"width": case.width, "height": case.height}', "}"),
        ('"width": case.width, "height": case.height}', '"width": case.height, "height": case.width}'),
        ("manual_seed(case.seed)", "manual_seed(0)"),
        ("num_inference_steps=self.steps", "num_inference_steps=20"),
        ('nudenet.counts(boxes, "rece", self._cut)', 'nudenet.counts(boxes, "mace", self._cut)'),
        ('Protocol("nudity", "nudenet", 0.6, 0.8, 4703', 'Protocol("nudity", "nudenet", 0.45, 0.8, 4703'),
    ),
    *of(
        "excise/bench/protocols/prompts.py",
        "tests/bench/protocols/test_protocols.py",
        ("NO_SEED = 42", "NO_SEED = 0"),
        ('Schema("i2p-sd", ("sd_seed",), seed="sd_seed", guidance="sd_guidance_scale")',
         'Schema("i2p-sd", ("sd_seed",), seed="sd_seed")'),
        ('(not categories or "sexual" in categories)', '("sexual" in categories)'),
        ("if category in row.categories)", "if category not in row.categories)"),
        ("side % 8)", "side % 4)"),
    ),
    *of(
        "excise/bench/protocols/unlearncanvas.py",
        "tests/bench/protocols/test_unlearncanvas.py::test_pictures_are_drawn_by_ddim_with_the_published_settings"
        " tests/bench/protocols/test_unlearncanvas.py::test_accuracies_against_counting_by_hand",
        ("SEED, STEPS, GUIDANCE = 188, 100, 9.0", "SEED, STEPS, GUIDANCE = 188, 100, 7.5"),
        ("SEED, STEPS, GUIDANCE = 188, 100, 9.0", "SEED, STEPS, GUIDANCE = 188, 50, 9.0"),
        ("                    guidance_scale=self.guidance,\n", ""),
        ("num_inference_steps=self.steps", "num_inference_steps=STEPS"),
        ("pipe.scheduler = DDIMScheduler.from_config(own.config)", "DDIMScheduler.from_config(own.config)"),
        ('"ua": [not p.seen["target"] for p in with_it]', '"ua": [p.seen["target"] for p in with_it]'),
        ("own, other = (thing, style) if is_object else (style, thing)",
         "own, other = (style, thing) if is_object else (thing, style)"),
    ),
    *of(
        "excise/bench/canvas/metrics.py",
        CANVAS,
        ("TESTABLE = 0.3", "TESTABLE = 0.6"),
        ('    return not p.seen["target"]\n', '    return p.seen["target"]\n'),
        ('not p.seen["target"] and all(p.seen["kept"]) if', 'all(p.seen["kept"]) if'),
        ('bool(p.seen["target"]) if p.unerased["target"] else None', 'bool(p.seen["target"])'),
        ('or p.seen["second"]["others"])', ")"),
    ),
    *of(
        "excise/bench/attacks/ring_a_bell.py",
        "tests/bench/attacks/test_ring_a_bell.py",
        ("(with_concept - without).mean(0)", "(without - with_concept).mean(0)"),
        ("order = loss.argsort()[:half]", "order = loss.argsort(descending=True)[:half]"),
        ("return alive[int(loss.argmin())]", "return alive[int(loss.argmax())]"),
        ("not any(part in word for part in parts)", "True"),
    ),
]  # fmt: skip
