"""Figures of the verdict for every concept that the bundled model generates and for words it does not, to set its
limits."""

from __future__ import annotations

import argparse
import json
import warnings

from excise import reference
from excise.concepts import builtin, from_templates
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.reference.world import OBJECTS, STYLES
from excise.sae import load

UNDRAWN = (("halberd", "mace"), ("hammer",), ("spider-man",), ("submarine",), ("молоток",), ("lamp",), ("violin",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="Only these concepts.")
    only = parser.parse_args().only
    pipe, folder = reference.load(), reference.sae_folder()
    sae, config = load(folder), SNCEConfig(sae=str(folder))
    concepts = [builtin(name) for name in (*OBJECTS, *STYLES) if not only or name in only]
    concepts += [from_templates(words[0], words) for words in UNDRAWN if not only or words[0] in only]
    warnings.simplefilter("ignore")
    for concept in concepts:
        try:
            verdict = dict(fit(pipe, concept, config, sae=sae).verdict)
        except ExciseError as error:
            verdict = {"refused": str(error)}
        print(json.dumps({"concept": concept.name, **verdict}, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
