"""The optional corrections that `[prep]` names, for one slab: which, in which order, with which parameters."""

from __future__ import annotations

from typing import Any, cast

from ministream import config, registry
from ministream.errors import ConfigError
from ministream.prep.steps import ProjectionStep, SinogramStep, SlabFacts


def described(options: config.PrepSection) -> tuple[str, ...]:
    """The whole chain in the order of application, the corrections before and after the optional ones included.

    Raises ConfigError for a wrong parameter.
    """
    tables = complete(options).tables
    steps = {"projection": list[str](), "sinogram": list[str]()}
    for name in options.steps:
        values = ", ".join(f"{key} = {value}" for key, value in tables[name].items())
        steps[_stage(name)].append(f"{name} ({values})")
    before = ["flats and darks"] if options.flat_dark else []
    after = ["-log"] if options.minus_log else []
    return (*before, *steps["projection"], *after, *steps["sinogram"])


def complete(options: config.PrepSection) -> config.PrepSection:
    """The section with every parameter of its corrections, defaults included, as files record them.

    Raises ConfigError for a wrong parameter.
    """
    tables = {name: _options(options, name).model_dump(mode="json") for name in options.steps}
    return options.model_copy(update={"tables": tables})


def projection_steps(options: config.PrepSection, facts: SlabFacts) -> list[ProjectionStep]:
    """The steps that change every projection, in order. Raises ConfigError for a wrong parameter."""
    found = [
        cast(ProjectionStep, _open(options, name, facts)) for name in options.steps if _stage(name) == "projection"
    ]
    if found and not options.minus_log:
        names = ", ".join(name for name in options.steps if _stage(name) == "projection")
        raise ConfigError(
            f"prep.steps: {names}: expected transmissions or counts, and the pixels are line integrals already "
            "(minus_log = false). Leave these steps out"
        )
    return found


def corrects_sinograms(options: config.PrepSection) -> bool:
    """Whether an update needs sinograms of its own."""
    return any(_stage(name) == "sinogram" for name in options.steps)


def sinogram_steps(options: config.PrepSection, facts: SlabFacts) -> dict[str, SinogramStep]:
    """The steps that change the sinograms of an update, in order, by name. Raises ConfigError for a wrong parameter."""
    return {
        name: cast(SinogramStep, _open(options, name, facts)) for name in options.steps if _stage(name) == "sinogram"
    }


def _stage(name: str) -> str:
    return str(registry.load(config.CORRECTIONS, name).Step.stage)


def _open(options: config.PrepSection, name: str, facts: SlabFacts) -> Any:
    return registry.load(config.CORRECTIONS, name).Step(_options(options, name), facts)


def _options(options: config.PrepSection, name: str) -> config.Section:
    module = registry.load(config.CORRECTIONS, name)
    return cast(config.Section, config.parse(module.Options, options.tables.get(name, {}), f"[prep.{name}]"))
