"""What goes into service: readiness, the policy, the engine, LoRA files and checkpoints in one file."""

from __future__ import annotations

from tests.mutants import of

HTTP = "tests/app/serve/test_http.py tests/app/serve/test_faults.py"
MUTANTS = [
    *of(
        "excise/health.py",
        "tests/test_health.py",
        ('if not status["digest"].startswith(digest):', 'if digest not in status["digest"][:1]:'),
        ('if not status["strength"] >= least:', 'if status["strength"] > least:'),
        ("        if canary and not changes:\n            attachment.prove()\n", ""),
        ('return ["no eraser is loaded"]', "return []"),
        ("changes = attachment.changes()", "changes: list[str] = []"),
    ),
    *of(
        "excise/app/serve/policy.py",
        "tests/app/serve/test_policy.py",
        ("if not low <= strength <= high:", "if not strength <= high:"),
        ("if not 0 <= low <= self.strength <= high <= MOST_STRENGTH:", "if not low <= high:"),
        ("if require_signature and signed_by is None:", "if False:"),
        ("if self.check_event(yaml.AliasEvent):", "if False:"),
    ),
    *of(
        "excise/app/serve/asking.py",
        "tests/app/serve/test_openai.py tests/app/serve/test_http.py",
        ("for name, value in found.items() if value is not None}", "for name, value in found.items()}"),
        ('    if text == "auto":\n        return None\n', ""),
        ("given.seed + given.n - 1 > LARGEST_SEED", "given.seed > LARGEST_SEED"),
    ),
    *of(
        "excise/app/serve/failures.py",
        "tests/app/serve/test_openai.py",
        ("if failure.code in _HOPELESS:", "if False:"),
        ('group, code, getattr(error, "field", None))', "group, code)"),
    ),
    *of(
        "excise/app/serve/engine.py",
        HTTP,
        ("rows = {name: count - before[name] for", "rows = {name: count for"),
        ('        if acted["refuse"]:\n            raise Refused(acted["refuse"])\n', ""),
        ("with excise.using(self.pipe, now):", "with excise.using(self.pipe, usual):"),
        ("(pixels,) = drawn.sound([seed])", "(pixels,) = drawn.pixels"),
    ),
    *of(
        "excise/app/serve/erasers.py",
        HTTP,
        ("            attachment.detach()\n        raise\n", "            pass\n        raise\n"),
        ("attachment.strength, attachment.enabled = policy.erasers[name].strength, True",
         "attachment.strength = policy.erasers[name].strength"),
    ),
    *of(
        "excise/app/serve/http.py",
        HTTP,
        ("if self.allowed and not (any(found)", "if self.allowed and not (found"),
        ("if size > asking.MOST_BYTES:", "if size > 100 * asking.MOST_BYTES:"),
    ),
    *of(
        "excise/app/serve/visitors.py",
        "tests/app/serve/test_visitors.py",
        ('if host is not None and not _on_loopback(f"//{host}"):', "if False:"),
        ("if origin is not None and not _on_loopback(origin):", "if False:"),
    ),
    *of(
        "excise/app/serve/sizes.py",
        "tests/app/serve/test_sizes.py",
        ('scale * getattr(pipe, "patch_size", 1)', "scale"),
        ("    if width * height > pixels:", "    if False:"),
    ),
    *of(
        "excise/app/serve/engine.py",
        "tests/app/serve/test_ready.py tests/app/serve/test_sizes.py",
        ("            if gone():\n                raise Gone\n", ""),
        ("        if reasons and not self.fault:", "        if False:"),
        ("if asked.size not in (None, (width, height)):", "if False:"),
        ("    if width * height > most:", "    if False:"),
    ),
    *of(
        "excise/app/serve/http.py",
        "tests/app/serve/test_ready.py tests/app/serve/test_http.py",
        ("return self.engine.reasons() or self._doubts", "return self.engine.reasons()"),
        ("if engine.idle and now - self._begun >= self.canary_every:", "if now - self._begun >= self.canary_every:"),
        ("    except ClientDisconnect:\n        raise client_gone() from None\n", "    finally:\n        pass\n"),
    ),
    *of(
        "excise/app/serve/http.py",
        "tests/app/serve/test_visitors.py",
        ("if not self.allowed and (why :=", "if False and (why :="),
    ),
    *of(
        "excise/erasers/artefact/lora.py",
        "tests/erasers/artefact/test_lora.py",
        ("torch.tensor(float(edit.rank))", "torch.tensor(1.0)"),
        ("    if edit.up is None:\n", "    if False:\n"),
        ("    if not _LINEAR.fullmatch(edit.site.path):\n", "    if False:\n"),
    ),
    *of(
        "excise/app/models/single_file.py",
        "tests/app/models/test_single_file.py",
        ("pipe.register_to_config(_name_or_path=", "pipe.register_to_config(_name="),
        ("    if _FIRST not in header.shapes:\n", "    if False:\n"),
        ("pad_token=pad)", "pad_token='!')"),
    ),
]  # fmt: skip
