"""Plug-ins are the modules of their package."""

from __future__ import annotations

import pytest

from ministream import registry
from ministream.errors import ConfigError


def test_modules_are_choices_and_helpers_are_not():
    known = registry.names("ministream.source")
    assert "phantom" in known
    assert not any(name.startswith("_") for name in known)
    assert registry.load("ministream.source", "phantom").__name__ == "ministream.source.phantom"


@pytest.mark.parametrize("name", ["phantm", "_order", "", "../phantom", "phantom.x"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"unknown source .*choose one of .*phantom"):
        registry.load("ministream.source", name)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    package = tmp_path / "plugins_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "fancy.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="needs the Python package 'a_package_nobody_has'"):
        registry.load("plugins_here", "fancy")
