"""What is tried again, what is set aside, and which part of an array job a process makes."""

from __future__ import annotations

from tests.mutants import of

MUTANTS = [
    *of(
        "excise/engine/run.py",
        "tests/engine/test_contract.py",
        ("self._tried[name] < self._tries:", "self._tried[name] <= self._tries:"),
        ("if self._again or not self._is_done(item):", "if not self._is_done(item):"),
        ("elif (outcome := self._kept(item)) is not None:", "elif (outcome := None) is not None:"),
        ("if self._sliced or not answer.expected:", "if not answer.expected:"),
        ("if self._sliced or not answer.expected:", "if True:"),
        ("return self._retry or bool", "return bool"),
        ('self._retry or bool(failure.get("expected"))', "self._retry"),
        (
            "for item in self._todo:\n            self._forget(item)",
            "for item in [*self._todo, *self._later]:\n            self._forget(item)",
        ),
        ('failure.get("record") in self._old and ', ""),
        ('if answer.error != "Lost" or (', "if ("),
        ("aside=not answer.expected)", "aside=True)"),
        ("if engine_.part is not None and again:", "if False:"),
        ("                self._others.add(name)\n", ""),
        ("{stage.name(item) for item in others}", "set()"),
        ('aside=not failure.get("expected"), elsewhere=elsewhere)', 'aside=not failure.get("expected"))'),
        ('"kept", tries=self._tried[name], elsewhere=name in self._others)', '"kept", tries=self._tried[name])'),
        ("if needs_all or not outcome.elsewhere]", "if not outcome.elsewhere]"),
        ("if needs_all or not outcome.elsewhere]", "]"),
    ),
    *of(
        "excise/engine/working.py",
        "tests/engine/test_contract.py",
        ("if not (path := self._stage.path(item)).exists():", "if not (path := self._stage.path(item)):"),
    ),
    *of(
        "excise/engine/slices.py",
        "tests/engine/test_slices.py",
        ("key=lambda row: row[:3]", "key=lambda row: row[1:3]"),
        ("before_last, distance = last - n // self.count", "before_last, distance = n // self.count"),
        ("(before_last - distance + 1) % helpers", "before_last % helpers"),
        ("!= int(text) - 1:", "!= int(text):"),
        ("(n - self.index) % self.count", "n % self.count"),
        ("found = (found - int(first)) // int(step)", "found = found - int(first)"),
        ("found % int(text)", "found"),
        ("if not 0 <= index < count:", "if not 0 <= index <= count:"),
    ),
    *of(
        "excise/engine/processes.py",
        "tests/engine/test_contract.py",
        ("self._cards[number % len(self._cards)]", "self._cards[0]"),
        ('Answer("lost" if worker.opened else "unopened"', 'Answer("lost"'),
        ("visible_cards() if needs.gpus else []", "visible_cards()"),
    ),
    *of(
        "excise/engine/engines.py",
        "tests/app/neurons/test_database.py",
        ("return part is None or part.index == 0", "return True"),
    ),
    *of(
        "excise/engine/failures.py",
        "tests/engine/test_contract.py",
        ("[outcome for outcome in failed if outcome.aside]", "failed"),
        ('content if content.get("of") == self._digest(item) else None', "content"),
        ('f"{kind.__module__}.{kind.__qualname__} {place}"', 'f"{kind.__qualname__}"'),
        ('if outcome.state == "failed"]', 'if outcome.state != "made"]'),
    ),
]
