"""Files of Excise's reference model. `excise.reference` reads them; this package has no code.

`model/` holds the pipeline with its judges and its SAE, `saes/` further SAEs, and `artwork/` the drawings that it was
trained on. The text files are CLIP's merges, and names and keywords of emoji.
"""
