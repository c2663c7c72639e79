"""Profiles, overrides and injected parameters: what is refused, and what the sentence says."""

from __future__ import annotations

import dataclasses
from operator import attrgetter

import pytest
import yaml
from papermill.translators import PythonTranslator

from umsf_lib import config as module
from umsf_lib.config import (
    AT_MOST_ONE,
    CHOICES,
    PROFILES,
    ZERO_ALLOWED,
    Config,
    ConfigError,
    load_config,
)
from umsf_lib.notebooks import PARAMETERS, check_parameters, injected_parameters


def said(call: object, *args: object, **kwargs: object) -> str:
    """The message of the ConfigError that a call raises: one line."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_loads_with_just_what_its_file_says(path) -> None:
    tree, default = yaml.safe_load(path.read_text()) or {}, dataclasses.asdict(Config(path.stem))
    for section, values in tree.items():
        for key in values:
            default[section][key] = values[key]
    assert dataclasses.asdict(load_config(path.stem)) == default


def test_what_the_caller_says_is_kept() -> None:
    config = load_config("tiny", data="my", layout="pairs", seed=7)
    assert (config.profile, config.data, config.layout, config.seed) == ("tiny", "my", "pairs", 7)
    assert load_config("tiny").layout == "whu-opt-sar"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 8  # type: ignore[misc]


def test_every_default_passes_its_own_checks() -> None:
    everything = dataclasses.asdict(Config("tiny"))
    pairs = [
        f"{section}.{key}={yaml.safe_dump(list(v) if isinstance(v, tuple) else v).split()[0]}"
        for section, values in everything.items()
        if isinstance(values, dict)
        for key, v in values.items()
        if not isinstance(v, tuple)
    ]
    assert len(pairs) > 60
    changed = dataclasses.asdict(load_config("tiny", overrides=" ".join(pairs)))
    assert changed == everything


def test_every_choice_names_a_field_and_is_accepted() -> None:
    for name, allowed in CHOICES.items():
        value_of = attrgetter(name)
        assert value_of(Config("x")) in allowed
        for value in allowed:
            assert value_of(load_config("tiny", overrides=f"{name}={value}")) == value


@pytest.mark.parametrize(
    ("overrides", "section", "key", "value"),
    [
        ("cluster.balance=0.5", "cluster", "balance", 0.5),
        ("cluster.balance=1", "cluster", "balance", 1.0),
        ("pretrain.lr=1e-3", "pretrain", "lr", 0.001),  # a text in YAML 1.1
        ("pretrain.lr=2E-4", "pretrain", "lr", 0.0002),
        ("model.despeckle=false", "model", "despeckle", False),
        ("model.sensors=sar", "model", "sensors", "sar"),
        ("pretrain.positives=[1,0,0.5]", "pretrain", "positives", (1.0, 0.0, 0.5)),
        ("cluster.sigmas_px=[1,2.5]", "cluster", "sigmas_px", (1.0, 2.5)),
        ("  cluster.steps=3   cluster.steps=4 ", "cluster", "steps", 4),
    ],
)
def test_overrides(overrides: str, section: str, key: str, value: object) -> None:
    found = getattr(getattr(load_config("tiny", overrides=overrides), section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ("cluster.balanse=0.5", ["'cluster.balanse'", "tiny.yaml", "'cluster.balance'"]),
        ("clutser.balance=0.5", ["'clutser'", "tiny.yaml", "'cluster'"]),
        ("cluster.qqqqqqq=1", ["'cluster.qqqqqqq'", "known:", "cluster.rounds"]),
        ("balance=0.5", ["'balance=0.5'", "section.key=value"]),
        ("cluster.balance", ["'cluster.balance'", "section.key=value"]),
        ("cluster.steps=1.5", ["cluster.steps", "must be int", "1.5 (float)"]),
        ("cluster.steps=true", ["cluster.steps", "must be int", "True (bool)"]),
        ("cluster.steps=", ["cluster.steps", "must be int", "None"]),
        ("cluster.balance=true", ["cluster.balance", "must be float", "True (bool)"]),
        ("cluster.balance=much", ["cluster.balance", "must be float", "'much' (str)"]),
        ("cluster.balance=.nan", ["cluster.balance", "nan", "finite"]),
        ("cluster.balance=.inf", ["cluster.balance", "inf", "finite"]),
        ("cluster.balance=-0.1", ["cluster.balance", "-0.1", "not negative"]),
        ("pretrain.batch=0", ["pretrain.batch", "0", "larger"]),
        ("pretrain.tau=0", ["pretrain.tau", "0", "larger"]),
        ("pretrain.positives=[1,1]", ["pretrain.positives", "must be 3 numbers", "[1, 1]"]),
        ("pretrain.positives=[1,1,-1]", ["pretrain.positives", "-1", "not negative"]),
        ("pretrain.optimizer=lars", ["'lars'", "sgd, adamw"]),
        ("views.sensor_drop=2", ["views.sensor_drop", "2", "at most 1"]),
        ("cluster.sigmas_px=[0]", ["cluster.sigmas_px", "0", "larger"]),
        ("pretrain.ema=1.5", ["pretrain.ema", "1.5", "at most 1"]),
        ("views.scale_min=2", ["views.scale_min", "2", "at most 1"]),
        ('model.despeckle="false"', ["model.despeckle", "must be bool", "'false' (str)"]),
        ("model.despeckle=1", ["model.despeckle", "must be bool", "1 (int)"]),
        ("model.fusion=atention", ["model.fusion", "'atention'", "concat, add, attention"]),
        ("cluster.sigmas_px=2", ["cluster.sigmas_px", "tuple", "2 (int)"]),
        ("cluster.sigmas_px=[a]", ["cluster.sigmas_px", "float", "'a' (str)"]),
        ("cluster.sigmas_px=[-1]", ["cluster.sigmas_px", "-1", "not negative"]),
        ("cluster.sigmas_px=[1", ["cluster.sigmas_px=[1", "'[1'", "YAML"]),
        ("a.b.c=1", ["'a'"]),
        ("seed.x=1", ["seed", "must be int"]),
    ],
)
def test_bad_overrides_are_refused_by_name(overrides: str, parts: list[str]) -> None:
    message = said(load_config, "tiny", overrides=overrides)
    for part in parts:
        assert part in message, message


def test_the_names_with_ranges_exist() -> None:
    config = load_config("quick")
    for name in ZERO_ALLOWED | AT_MOST_ONE:
        section, key = name.split(".")
        assert isinstance(getattr(getattr(config, section), key), int | float | tuple), name


def test_an_unknown_profile_lists_the_known_ones() -> None:
    message = said(load_config, "quik")
    assert "'quik'" in message and "quick, " in message and "tiny" in message


@pytest.mark.parametrize("seed", ["3", 1.0, True, -1, None])
def test_seeds_that_are_none(seed: object) -> None:
    message = said(load_config, "tiny", seed=seed)
    assert "seed" in message and str(seed) in message


def test_mistakes_in_a_profile_file_name_the_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PROFILES", tmp_path)
    (tmp_path / "mine.yaml").write_text("pretrain: {epocs: 3}\n")
    assert "mine.yaml; did you mean 'pretrain.epochs'?" in said(load_config, "mine")
    (tmp_path / "mine.yaml").write_text('model: {despeckle: "false"}\n')
    assert "model.despeckle in mine.yaml must be bool" in said(load_config, "mine")
    (tmp_path / "mine.yaml").write_text("# all as it is\n")
    assert load_config("mine") == Config("mine")


def injected(**parameters: object) -> dict[str, object]:
    """What the notebook finds in the cell that papermill itself writes."""
    history = ["", "seed = 0  # of every draw", PythonTranslator.codify(parameters), "x = 1"]
    return injected_parameters(history)


def test_injected_values_come_back_as_papermill_got_them() -> None:
    given = {"run": 'a "b"\n\\c', "seed": -3, "x": 0.1, "flag": False, "none": None, "l": [1, "a"]}
    assert injected(**given) == given
    assert injected_parameters(["", "seed = 3", "print('# Parameters')"]) == {}


def test_of_parameter_cells_run_again_the_last_counts() -> None:
    history = ["# Parameters\nsed = 3", "# Parameters\nseed = 4"]
    assert injected_parameters(history) == {"seed": 4}


def test_a_nan_is_injected_as_a_call_and_refused() -> None:
    message = said(injected, rate=float("nan"))
    assert "'rate'" in message and "float('nan')" in message


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"sed": 3}, ["'sed'", "this notebook", "did you mean 'seed'?"]),
        ({"seed": "3"}, ["'seed'", "'3' (str)", "must be int", "-p", "-r"]),
        ({"seed": 3.0}, ["'seed'", "3.0 (float)", "must be int"]),
        ({"show": "false"}, ["'show'", "'false' (str)", "must be bool", "True or False"]),
        ({"seed": True}, ["'seed'", "True (bool)", "must be int"]),
        ({"run": 5}, ["'run'", "5 (int)", "must be str"]),
        ({"profile": None}, ["'profile'", "None", "must be str"]),
    ],
)
def test_injected_mistakes_name_parameter_value_and_remedy(given, parts) -> None:
    known = PARAMETERS | {"show": bool}
    message = said(check_parameters, injected(**given), known, "this notebook")
    for part in parts:
        assert part in message, message


def test_right_parameters_pass() -> None:
    known = PARAMETERS | {"share": float}
    check_parameters(injected(seed=3, run="mine", share=1), known, "this notebook")
    check_parameters({}, known, "this notebook")
