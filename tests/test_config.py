"""Profiles, overrides and injected parameters: what is refused, and what the sentence says."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import yaml
from papermill.translators import PythonTranslator

from umsf_lib import config as module
from umsf_lib.config import (
    PROFILES,
    Config,
    ConfigError,
    ModelConfig,
    load_config,
    read_yaml,
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


def fields() -> list[tuple[str, str, object, object]]:
    """Section, name, type and default of every setting in a section."""
    return [
        (section.name, key, kind, getattr(section.default, key))
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.default)
        for key, kind in typing.get_type_hints(type(section.default)).items()
    ]


def test_every_choice_is_accepted_and_the_default_is_one() -> None:
    choices = [(s, key, typing.get_args(kind), d) for s, key, kind, d in fields()]
    choices = [row for row in choices if row[2] and isinstance(row[3], str)]
    assert len(choices) == 13
    for section, key, allowed, default in choices:
        assert default in allowed
        for value in allowed:
            overrides = f"{section}.{key}={value} model.heads=1"
            found = getattr(load_config("tiny", overrides=overrides), section)
            assert getattr(found, key) == value
    for device in ("auto", "cpu", "cuda"):
        assert load_config("tiny", overrides=f"device={device}").device == device


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
        ("cluster.steps=1.5", ["cluster.steps", "must be a valid integer", "1.5 (float)"]),
        ("cluster.steps=true", ["cluster.steps", "must be a valid integer", "True (bool)"]),
        ("cluster.steps=", ["cluster.steps", "must be a valid integer", "None"]),
        ("cluster.balance=true", ["cluster.balance", "must be a valid number", "True (bool)"]),
        ("cluster.balance=much", ["cluster.balance", "must be a valid number", "'much' (str)"]),
        ("cluster.balance=.nan", ["cluster.balance", "nan", "finite"]),
        ("cluster.balance=.inf", ["cluster.balance", "inf", "finite"]),
        ("cluster.balance=-0.1", ["cluster.balance", "-0.1", "greater than or equal to 0"]),
        ("pretrain.batch=0", ["pretrain.batch", "0", "greater than 0"]),
        ("pretrain.tau=0", ["pretrain.tau", "0", "greater than 0"]),
        ("pretrain.positives=[1,1]", ["pretrain.positives", "at least 3 items", "[1, 1]"]),
        ("pretrain.positives=[1,1,-1]", ["pretrain.positives", "-1", "greater than or equal to 0"]),
        ("pretrain.optimizer=lars", ["'lars'", "'sgd' or 'adamw'"]),
        ("views.sensor_drop=2", ["views.sensor_drop", "2", "less than or equal to 1"]),
        ("cluster.sigmas_px=[0]", ["cluster.sigmas_px", "0", "greater than 0"]),
        ("pretrain.ema=1.5", ["pretrain.ema", "1.5", "less than or equal to 1"]),
        ("views.scale_min=2", ["views.scale_min", "2", "less than or equal to 1"]),
        (
            'model.despeckle="false"',
            ["model.despeckle", "must be a valid boolean", "'false' (str)"],
        ),
        ("model.despeckle=1", ["model.despeckle", "must be a valid boolean", "1 (int)"]),
        (
            "model.fusion=atention",
            ["model.fusion", "'atention'", "'asanet', 'amm_fusenet' or 'ref_net'"],
        ),
        ("cluster.sigmas_px=2", ["cluster.sigmas_px", "must be a valid", "2 (int)"]),
        ("cluster.sigmas_px=[a]", ["cluster.sigmas_px", "number", "'a' (str)"]),
        ("cluster.sigmas_px=[-1]", ["cluster.sigmas_px", "-1", "greater than 0"]),
        ("cluster.sigmas_px=[1", ["cluster.sigmas_px=[1", "'[1'", "YAML"]),
        ("a.b.c=1", ["'a'"]),
        ("device=cpu device.x=1", ["'device.x=1'", "section.key=value"]),
        ("cluster.lr=!!int", ["'!!int'", "YAML"]),
        ("seed.x=1", ["seed", "must be a valid integer"]),
    ],
)
def test_bad_overrides_are_refused_by_name(overrides: str, parts: list[str]) -> None:
    message = said(load_config, "tiny", overrides=overrides)
    for part in parts:
        assert part in message, message


ZERO_ALLOWED = {
    "views": "overlap_px gain offset blur speckle_looks sar_gain sensor_drop band_drop",
    "pretrain": "steps_per_epoch momentum weight_decay warmup_epochs ema fused pooled "
    "neighbour_m homogeneity",
    "cluster": "num_clusters teacher_share clustering consistency balance ema smoothing_px",
    "supervised": "weight_decay",
    "map": "overlap_px",
}
AT_MOST_ONE = {
    "views": "scale_min blur sensor_drop band_drop",
    "pretrain": "momentum ema pooled",
    "cluster": "teacher_share ema",
    "supervised": "labelled",
}


def test_every_number_is_refused_out_of_its_range() -> None:
    numbers = [(s, key, d) for s, key, _, d in fields() if type(d) in (int, float)]
    assert len(numbers) > 50
    for section, key, default in numbers:
        name, zero = f"{section}.{key}", key in ZERO_ALLOWED.get(section, "").split()
        for value, fine, says in (
            (-1, False, "greater than"),
            (0, zero, "greater than 0"),
            (2.5, type(default) is float and key not in AT_MOST_ONE.get(section, "").split(), ""),
        ):
            overrides = f"{name}={value}"
            if fine:
                found = getattr(load_config("tiny", overrides=overrides), section)
                assert getattr(found, key) == value
            else:
                message = said(load_config, "tiny", overrides=overrides)
                assert f"{name} in tiny.yaml must be" in message and says in message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ("model.heads=3", ["model.heads is 3", "model.channels (16)", "set model.heads to"]),
        ("model.channels=18", ["model.heads is 4", "model.channels (18)", "divisor"]),
        (
            "views.window_px=34",
            ["views.window_px is 34", "model.stride (4)", "set views.window_px"],
        ),
        ("model.stride=5", ["views.window_px is 32", "model.stride (5)", "multiple"]),
    ],
)
def test_values_that_do_not_go_together_are_both_named(overrides: str, parts: list[str]) -> None:
    message = said(load_config, "tiny", overrides=overrides)
    for part in parts:
        assert part in message, message


def test_heads_that_are_not_used_and_tiles_that_are_rounded_may_be_any() -> None:
    for overrides in ("model.fusion=add", "model.sensors=sar"):
        assert load_config("tiny", overrides=f"model.heads=3 {overrides}").model.heads == 3
    assert load_config("tiny", overrides="map.tile_px=66").map.tile_px == 66


def test_a_change_in_code_is_checked_like_an_override() -> None:
    config = load_config("tiny")
    assert config.changed(cluster={"balance": 1}, views={}).cluster.balance == 1.0
    assert config.changed(pretrain={"lr": 1 / 3}).pretrain.lr == 1 / 3
    assert "did you mean 'cluster.balance'?" in said(config.changed, cluster={"balanse": 1})
    assert "did you mean 'cluster'?" in said(config.changed, clutser={"balance": 1})
    assert "cluster.steps" in said(config.changed, cluster={"steps": 1.5})
    assert "model.heads is 5" in said(config.changed, model={"heads": 5})
    with pytest.raises(ConfigError, match=r"model.heads is 3, .* model.channels \(16\)"):
        dataclasses.replace(config.model, heads=3)
    with pytest.raises(ValueError, match="greater than 0"):
        ModelConfig(channels=0)


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
    assert "model.despeckle in mine.yaml must be a valid boolean" in said(load_config, "mine")
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


# -- YAML ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("0.5", 0.5),
        ("true", True),
        ("no", False),
        ("~", None),
        ("08", "08"),
        ("010", "010"),
        ("1.10", "1.10"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("2020-01-01", "2020-01-01"),
        ("'12'", "12"),
        ("=", "="),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
        ("{no: 1, ~: 2, Off: no}", {"no": 1, "~": 2, "Off": False}),
    ],
)
def test_yaml_means_what_it_looks_like(text: str, value: object) -> None:
    found = read_yaml(text, "here")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is there twice"),
        ("a:\n  - {x: 1, x: 2}", "line 2: 'x' is there twice"),
        ("a:\n\tb: 1", "line 2: found character"),
        ("a: [1", "line 1: expected"),
        ("a: !!timestamp soon", "no attribute"),
    ],
)
def test_yaml_that_cannot_be_right_names_the_line(text: str, says: str) -> None:
    message = said(read_yaml, text, "mine.yaml")
    assert message.startswith("mine.yaml cannot be read as YAML: ") and says in message


@pytest.mark.parametrize(
    ("overrides", "lr"),
    [("pretrain.lr=.5", 0.5), ("pretrain.lr=1.50", 1.5), ("pretrain.lr=2.", 2.0)],
)
def test_numbers_in_other_spellings_are_numbers(overrides: str, lr: float) -> None:
    assert load_config("tiny", overrides=overrides).pretrain.lr == lr


@pytest.mark.parametrize("value", ["010", "1:30", "0x10"])
def test_whole_numbers_in_other_spellings_are_refused(value: str) -> None:
    assert f"it is '{value}' (str)" in said(load_config, "tiny", overrides=f"cluster.steps={value}")


def test_clusters_must_fit_a_byte() -> None:
    assert load_config("tiny", overrides="cluster.num_clusters=254").cluster.num_clusters == 254
    message = said(load_config, "tiny", overrides="cluster.num_clusters=255")
    assert "cluster.num_clusters" in message and "254" in message and "255" in message


def test_a_mistake_names_its_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "PROFILES", tmp_path)
    (tmp_path / "mine.yaml").write_text("cluster:\n  rounds: 1\n  steps: 010\n")
    assert said(load_config, "mine").startswith("Line 3: cluster.steps in mine.yaml")
    (tmp_path / "mine.yaml").write_text("model:\n  despeckle: true\npretrain:\n  epocs: 3\n")
    assert said(load_config, "mine").startswith("Line 4: 'pretrain.epocs' is not")
    (tmp_path / "mine.yaml").write_bytes("# Höhe\ncluster: {rounds: 1}\n".encode("utf-16"))
    assert load_config("mine").cluster.rounds == 1
