"""Files of the reference model that Excise is tried and measured on. `excise.reference` reads them; there is no code.

`model/` is the pipeline with its judges and its SAE, `saes/` holds further SAEs, `artwork/` the drawings it was
trained on; the text files are CLIP's merges and the names and keywords of emoji.
"""
