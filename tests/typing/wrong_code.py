"""Code that a type checker must reject: each line marked `wrong` has exactly one error (tests/typing/test_types.py)."""

import excise


class Diffusers:
    @property
    def components(self) -> dict[str, object]:
        return {}


pipe = Diffusers()
excise.erase("a model's name", "gun")  # wrong
excise.erase(pipe, 5)  # wrong
excise.load_eraser(pipe, "owner/name", revison="main")  # wrong
excise.load_eraser(pipe, "owner/name", on_bypass="ignore")  # wrong
excise.Eraser.from_pretrained("owner/name", revision=5)  # wrong
excise.Eraser.from_pretrained("owner/name").attach(object())  # wrong
excise.TopKSAE.from_pretrained(5)  # wrong
excise.set_erasers(pipe, "gun", "high")  # wrong
excise.find_neurons(pipe, "gun").top("one")  # wrong
print(excise.method_config("uce").gate)  # wrong
print(excise.no_such_name)  # wrong
