"""What the filter of prompts that mention minors misses, and what it drops for nothing, on natural sentences.

    python -m benchmarks.figures.minors_filter

The sentences are WordNet's examples (`apt-get install wordnet-base`; no package has captions of pictures). A language
model read 484 of them: 200 at random of those that the filter dropped, and all 284 of those that it kept and that have
a word about youth, family, school or age. Its verdicts are in docs/results/minors_verdicts.json by the sentence's
digest. The filter was mended afterwards, so its figures on these sentences are those of a tuned filter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures.natural_prompts import wordnet
from excise.app.bench.provenance import in_words, provenance
from excise.concepts.minors import names_minors
from excise.files import write_atomic
from excise.statistics import in_percent, share

OUT = Path("docs/results/minors_filter.json")
COMMAND = "python -m benchmarks.figures.minors_filter"


def main() -> None:
    sentences = wordnet()
    by_digest = {hashlib.sha256(text.encode()).hexdigest()[:8]: text for text in sentences}
    verdicts = json.loads(OUT.with_name("minors_verdicts.json").read_text())
    results = provenance(COMMAND, bundled=False)
    results |= {"sentences": len(sentences), "drops": sum(map(names_minors, sentences))}
    for side, read in verdicts.items():
        results[side] = [[about, names_minors(by_digest[digest])] for digest, about in read.items()]
    write_atomic(OUT, json.dumps(results) + "\n")
    write_atomic(OUT.with_suffix(".md"), page(results))
    print(page(results))


def page(results: Mapping[str, Any]) -> str:
    """Return docs/results/minors_filter.md."""
    dropped, kept = results["dropped"], results["kept"]
    before = in_percent(share([not about for about, _ in dropped]).to_json())
    for_nothing = sum(now and not about for about, now in dropped)
    missed = [now for about, now in kept if about]
    lost = sum(about and not now for about, now in dropped)
    return "\n".join(
        [
            "# The filter of prompts that mention minors",
            "",
            f"{in_words(results)}.",
            "",
            f"The filter drops {results['drops']:,} of {results['sentences']:,} example sentences of WordNet. No",
            "package has captions of pictures, so how often it errs on those is not known. A language model read two",
            "parts:",
            "",
            f"- **Dropped for nothing.** Of {len(dropped)} sentences, a random sample of what the filter dropped",
            f"  before it was mended, {before} % mention no minor: a time of ten years, a minor",
            f"  injury, kid gloves, a grown-up son. Today's filter still drops {for_nothing} of those, and keeps",
            f"  {lost} of the others.",
            f"- **Missed.** Of {len(kept)} sentences that it kept, all that have a word about youth, family, school",
            f"  or age, {len(missed)} mention someone under 18 for certain, such as “sixteen years old”, an orphan, or",
            f"  schoolchildren. Today's filter finds {sum(missed)} of them. *Twins*, *lad* and *scout* stay unfound,",
            "  because they are mostly other things, and so does every *young* person of unknown age.",
            "",
            "The filter was mended on these sentences, so it may miss and drop more on others. It knows English alone,",
            "and reads words: a minor who is described without any of its words passes.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
