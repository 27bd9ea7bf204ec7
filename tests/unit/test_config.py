"""One configuration: what is wrong in it is named, with what would be right."""

from __future__ import annotations

import pytest

from ministream import config
from ministream.cli import overrides
from ministream.errors import ConfigError, ExitCode


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_a_file_and_options_make_one_configuration(tmp_path):
    path = write(tmp_path, "[window]\nlength = 90\nstep = 30\n[source]\nkind = 'phantom'\nrows = 8\n")
    settled = config.load(path, {"window": {"step": 45, "iterations": None}, "source": {"cols": 16}})
    assert (settled.window.length, settled.window.step, settled.window.iterations) == (90, 45, 1)
    assert settled.source.options == {"rows": 8, "cols": 16}


@pytest.mark.parametrize("where", ["file", "option"])
def test_what_a_distributor_sends_is_not_corrected_again(tmp_path, where):
    wire = "[stream]\nwire = 'tracemq'\n" if where == "file" else ""
    options = {} if wire else {"stream": {"wire": "tracemq"}}
    plain = config.load(write(tmp_path, wire), options).prep
    assert (plain.flat_dark, plain.minus_log) == (False, False)
    given = config.load(write(tmp_path, wire + "[prep]\nminus_log = true\n"), options).prep
    assert (given.flat_dark, given.minus_log) == (False, True)
    assert config.load(None).prep == config.PrepSection()


def test_the_file_is_whole_in_the_output(tmp_path):
    path = write(tmp_path, "[recon]\nkind = 'sirt'\nrelaxation = 0.5\n")
    assert config.load(path).as_dict()["recon"]["relaxation"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[window]\nlenght = 3\n", r"unknown key window\.lenght \(did you mean length\?\)"),
        ("[windows]\nlength = 3\n", r"unknown key windows \(did you mean window\?\)"),
        ("[window]\nlength = 'long'\n", r"window\.length = 'long': .*integer"),
        ("[window]\nlength = 3\nstep = 4\n", r"window: step 4 is larger than length 3"),
        ("[stream]\nstrict = 1\n", r"stream\.strict = 1: .*boolean"),
        ("[producer]\nrate = -1.0\n", r"producer\.rate = -1\.0: .*greater than 0"),
        ("[recon]\naxis = 3.0\ncenter = 3.5\n", "axis or center, not both"),
        ("window = 3\n", "window = 3: "),
        ("[window\n", "not valid TOML"),
        ("\xff", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml: no such configuration file"):
        config.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)


def test_an_option_for_a_table_that_is_none(tmp_path):
    path = write(tmp_path, "window = 3\n")
    with pytest.raises(ConfigError, match=r"window must be a table"):
        config.load(path, {"window": {"step": 2}})


def test_center_is_axis_plus_half():
    assert config.ReconSection(center=296.0).axis_col == 295.5
    assert config.ReconSection(axis=295.5).axis_col == 295.5
    assert config.ReconSection().axis_col is None


def test_the_axis_is_a_column_or_auto():
    automatic = config.load(None, {"recon": {"axis": "auto"}}).recon
    assert automatic.finds_axis
    assert automatic.axis_col is None
    assert not config.ReconSection(axis=3.0).finds_axis
    with pytest.raises(ConfigError, match=r"recon.axis = 'centre': expected a detector column, or auto"):
        config.load(None, {"recon": {"axis": "centre"}})


def test_set_assigns_any_key():
    tables = overrides(["window.step=3", "source.kind=dxchange", "recon.axis=2.5"], window={"length": 9})
    assert tables == {"window": {"length": 9, "step": 3}, "source": {"kind": "dxchange"}, "recon": {"axis": 2.5}}


@pytest.mark.parametrize("setting", ["window", "window=3", "window.step", "window.=3"])
def test_set_without_a_key_says_how(setting):
    with pytest.raises(ConfigError, match=r"expected TABLE\.KEY=VALUE"):
        overrides([setting])
