"""`excise.method_config`, with each method's own type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

from excise.errors import InvalidSetting

if TYPE_CHECKING:
    from excise.methods.configs.baselines import NoneConfig, SafetyFilterConfig
    from excise.methods.configs.closed_form import RECEConfig, SPEEDConfig, UCEConfig
    from excise.methods.configs.sae import ItDConfig, SAEmnesiaConfig, SAEmnesiaTextConfig, SAEuronConfig, SNCEConfig
    from excise.methods.configs.steering import (
        AdaVDConfig,
        CASteerConfig,
        CASteerGatedConfig,
        CGCEConfig,
        ConceptSteerersConfig,
        LEACEConfig,
        SAFREEConfig,
        SLDConfig,
        STGConfig,
    )
    from excise.methods.configs.trained import (
        AdvUnlearnConfig,
        CAConfig,
        DuMoConfig,
        ESDConfig,
        HiRMConfig,
        MACEConfig,
        RecelerConfig,
        SAConfig,
        SPMConfig,
    )


class MethodConfig(Protocol):
    """A method's configuration where only its name at run time says which: every setting is an attribute.

    It is a frozen dataclass, of joined methods a namespace; `vars` gives the settings of both by name. With a method's
    name written in the code, `excise.method_config` has the method's own type instead, such as `SNCEConfig`.
    """

    def __getattr__(self, name: str) -> Any: ...


@overload
def method_config(method: Literal["adavd"], *, preset: str | None = ..., **settings: Any) -> AdaVDConfig: ...
@overload
def method_config(method: Literal["advunlearn"], *, preset: str | None = ..., **settings: Any) -> AdvUnlearnConfig: ...
@overload
def method_config(method: Literal["ca"], *, preset: str | None = ..., **settings: Any) -> CAConfig: ...
@overload
def method_config(method: Literal["casteer"], *, preset: str | None = ..., **settings: Any) -> CASteerConfig: ...
@overload
def method_config(
    method: Literal["casteer-gated"], *, preset: str | None = ..., **settings: Any
) -> CASteerGatedConfig: ...
@overload
def method_config(method: Literal["cgce"], *, preset: str | None = ..., **settings: Any) -> CGCEConfig: ...
@overload
def method_config(
    method: Literal["concept-steerers"], *, preset: str | None = ..., **settings: Any
) -> ConceptSteerersConfig: ...
@overload
def method_config(method: Literal["dumo"], *, preset: str | None = ..., **settings: Any) -> DuMoConfig: ...
@overload
def method_config(
    method: Literal["esd", "esd-u", "esd-x"], *, preset: str | None = ..., **settings: Any
) -> ESDConfig: ...
@overload
def method_config(method: Literal["hirm"], *, preset: str | None = ..., **settings: Any) -> HiRMConfig: ...
@overload
def method_config(method: Literal["itd"], *, preset: str | None = ..., **settings: Any) -> ItDConfig: ...
@overload
def method_config(method: Literal["leace"], *, preset: str | None = ..., **settings: Any) -> LEACEConfig: ...
@overload
def method_config(method: Literal["mace"], *, preset: str | None = ..., **settings: Any) -> MACEConfig: ...
@overload
def method_config(method: Literal["none"], *, preset: str | None = ..., **settings: Any) -> NoneConfig: ...
@overload
def method_config(method: Literal["rece"], *, preset: str | None = ..., **settings: Any) -> RECEConfig: ...
@overload
def method_config(method: Literal["receler"], *, preset: str | None = ..., **settings: Any) -> RecelerConfig: ...
@overload
def method_config(method: Literal["sa"], *, preset: str | None = ..., **settings: Any) -> SAConfig: ...
@overload
def method_config(method: Literal["saemnesia"], *, preset: str | None = ..., **settings: Any) -> SAEmnesiaConfig: ...
@overload
def method_config(
    method: Literal["saemnesia-text"], *, preset: str | None = ..., **settings: Any
) -> SAEmnesiaTextConfig: ...
@overload
def method_config(method: Literal["saeuron"], *, preset: str | None = ..., **settings: Any) -> SAEuronConfig: ...
@overload
def method_config(
    method: Literal["safety-filter"], *, preset: str | None = ..., **settings: Any
) -> SafetyFilterConfig: ...
@overload
def method_config(method: Literal["safree"], *, preset: str | None = ..., **settings: Any) -> SAFREEConfig: ...
@overload
def method_config(method: Literal["sld"], *, preset: str | None = ..., **settings: Any) -> SLDConfig: ...
@overload
def method_config(method: Literal["snce"], *, preset: str | None = ..., **settings: Any) -> SNCEConfig: ...
@overload
def method_config(method: Literal["speed"], *, preset: str | None = ..., **settings: Any) -> SPEEDConfig: ...
@overload
def method_config(method: Literal["spm"], *, preset: str | None = ..., **settings: Any) -> SPMConfig: ...
@overload
def method_config(method: Literal["stg"], *, preset: str | None = ..., **settings: Any) -> STGConfig: ...
@overload
def method_config(method: Literal["uce"], *, preset: str | None = ..., **settings: Any) -> UCEConfig: ...
@overload
def method_config(method: str, *, preset: str | None = ..., **settings: Any) -> MethodConfig: ...
def method_config(method: str, *, preset: str | None = None, **settings: Any) -> Any:
    """Return a method's configuration: the given settings, with its defaults for the rest.

    Its `help()`, and `excise methods show`, describe each setting and the values that it takes.

    Args:
        method: As for `excise.erase`.
        preset: `"paper"` for the settings of the method's paper where Excise's defaults depart from it.
        settings: Settings by name.

    Returns:
        The method's frozen dataclass, such as `SNCEConfig`; for joined methods a namespace.

    Raises:
        ExciseError: for an unknown method, preset or setting, or an invalid value.

    Example:
        >>> excise.method_config("uce").lam
        0.5
    """
    from excise.methods.lookup import configured
    from excise.methods.lookup import method as found

    if not isinstance(method, str):
        raise InvalidSetting(f"a method is named by a text, such as 'snce', not by {method!r}")
    return configured(found(method).name, settings, preset)
