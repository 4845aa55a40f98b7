from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mappa.config import Config, cache_home, config_from, describe, differences, load_config
from mappa.errors import ConfigError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text('name = "run"\nsteps = 4\n[learn]\nlr = 5e-4\ntargets = ["q_proj"]\n')
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_that_come_with_mappa_load(path: Path) -> None:
    assert load_config(path).name


def test_reads_values_and_keeps_defaults(path: Path) -> None:
    config = load_config(path)
    assert (config.steps, config.learn.lr, config.learn.targets) == (4, 5e-4, ("q_proj",))
    assert config.learn.rank == Config(name="x").learn.rank


def test_overrides_take_toml_values_and_bare_words(path: Path) -> None:
    overrides = [
        "learn.lr=1e-4",
        "learn.whiten=false",
        "model=models/tiny",
        'learn.targets=["v_proj", "o_proj"]',
        "seed=3",
    ]
    config = load_config(path, overrides)
    assert (config.learn.lr, config.learn.whiten, config.model, config.seed) == (1e-4, False, "models/tiny", 3)
    assert config.learn.targets == ("v_proj", "o_proj")
    assert load_config(path, ["learn.clip=1"]).learn.clip == 1.0  # a whole number where a float is meant


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=3"], r"unknown key stepz; did you mean steps\?"),
        (["learn.learning_rate=1"], r"unknown key learn.learning_rate; (did you mean|known here)"),
        (["lern.lr=1"], r"unknown key lern; did you mean learn\?"),
        (["steps=few"], r"steps: Expected `int`, got `str`"),
        (["steps=1.5"], r"steps: Expected `int`, got `float`"),
        (["learn.whiten=1"], r"learn.whiten: Expected `bool`, got `int`"),
        (["learn.targets=[1]"], r"learn.targets\[0\]: Expected `str`, got `int`"),
        (["rollout.max_staleness=1"], r"rollout.max_staleness=1 lets episodes run while .*sampler.kind='local'"),
        (["steps=0"], r"steps: Expected `int` >= 1"),
        (["sampler.temperature=0"], r"sampler.temperature: Expected `float` > 0"),
        (["dtype=float8"], r"dtype: Invalid enum value 'float8'"),
        (["name="], r"name: Expected `str` of length >= 1"),
        (["learn.betas=[0.9, 1.5]"], r"learn.betas\[1\]: Expected `float` < 1"),
        (["learn.betas=[-0.1, 0.9]"], r"learn.betas\[0\]: Expected `float` >= 0"),
        (["seed=18446744073709551616"], r"seed: Expected `int` <= 9223372036854775807"),
        (["tasks.seed=18446744073709551616"], r"tasks.seed: Expected `int` <= 9223372036854775807"),
        (["coach.rubrics=[]"], r"coach.rubrics: Expected `array` of length >= 1"),
        (["name=."], r"name='.' cannot name a folder of its own"),
        (["name=.."], r"name='..' cannot name a folder of its own"),
        (["name=/tmp/x"], r"name='/tmp/x' cannot name a folder"),
        (["name=../x"], r"name='../x' cannot name a folder"),
        (["name=a/../.."], r"name='a/../..' cannot name a folder"),
        (['name="a\\u0000b"'], r"name='a.x00b' cannot name a folder"),
        ([f"name={'n' * 300}"], r"cannot name a folder of its own; use at most 200"),
        (["learn=3"], r"learn: Expected `object`, got `int`"),
        (["steps"], r"'steps' is not of the form section.key=value"),
        (["=3"], r"'=3' is not of the form"),
        (["name.first=x"], r"'name' is a value, not a section"),
    ],
)
def test_wrong_overrides_name_the_key(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not a TOML file"),
        ("steps = 3", "missing required field `name`"),
        ('name = "x"\n[learn]\nlrr = 1', r"unknown key learn.lrr; did you mean learn.lr\?"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config file at"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b'name = "\xff"')
    for below in (tmp_path / "bytes.toml" / "run.toml", Path("/dev/null/run.toml")):
        with pytest.raises(ConfigError, match="no config file at"):
            load_config(below)
    with pytest.raises(ConfigError, match="cannot be read: .*Is a directory"):
        load_config(tmp_path)
    for odd in (tmp_path / "bytes.toml", "a\0b"):
        with pytest.raises(ConfigError, match="is not a TOML file"):
            load_config(odd)


def test_differences_name_every_changed_value(path: Path) -> None:
    old, new = load_config(path), load_config(path, ["learn.lr=2e-4", "seed=1"])
    assert differences(old, old) == []
    assert sorted(differences(old, new)) == ["learn.lr: 0.0005 -> 0.0002", "seed: 0 -> 1"]


def test_a_run_may_go_on_with_another_budget(path: Path) -> None:
    more = load_config(path, ["coach.budget_tokens=1000", "coach.budget_dollars=2.5"])
    assert differences(load_config(path), more) == []


def test_a_correction_without_the_monitor_is_refused(path: Path) -> None:
    for switch in ("coach.correct=offset", "coach.memory=true"):
        with pytest.raises(ConfigError, match="live on what coach.monitor has seen"):
            load_config(path, ["coach.monitor=false", switch])


def test_an_ensemble_without_members_is_refused(path: Path) -> None:
    for more in ((), ("coach.rewrite_below=5",)):
        with pytest.raises(ConfigError, match=r"coach.kind='ensemble' has the rubric for its only member"):
            load_config(path, ["coach.kind=ensemble", *more])
    assert load_config(path, ["coach.kind=ensemble", "coach.rewrite_below=5", "coach.member.a.model=m"]).coach.member


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["learn.dtype=float32", "dtype=bfloat16"],
            r"learn.dtype='float32' is for .* a run's is dtype='bfloat16', set",
        ),
        (["learn.seed=77"], r"learn.seed=77 is for .* a run's is seed=0, set that and leave learn.seed out"),
        (["learn.model=other"], r"learn.model='other' is for .* a run's is model='smollm2-135m-instruct'"),
        (['learn.roles=["q"]'], r"learn.roles=\['q'\] is for .* set system and adapters"),
    ],
)
def test_what_a_run_says_at_its_top_is_refused_elsewhere(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)
    assert load_config(path, ["learn.seed=7", "seed=7", "learn.dtype=float32", "dtype=float32"]).learn.seed == 7


def test_a_config_survives_a_round_trip_as_data(path: Path) -> None:
    config = load_config(path, ["seed=7"])
    assert config_from(msgspec.to_builtins(config)) == config
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


def test_describe_documents_every_key() -> None:
    lines = describe().splitlines()
    keys = [line.split()[0] for line in lines[::2]]
    assert len(keys) == len(set(keys)) > 40
    assert {"name", "steps", "learn.lr", "sandbox.timeout", "rollout.repair_upstream"} <= set(keys)
    assert all(text.strip() for text in lines[1::2])
    assert "  sampler.sglang.environment (dict, default {})" in lines
    assert {key for key, line in zip(keys, lines[::2], strict=True) if "required)" in line} == {
        "name",
        "outside.NAME.url",
        "outside.NAME.model",
    }


def test_cache_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAPPA_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.setenv("MAPPA_HOME", "")
    assert cache_home() == Path.home() / ".cache" / "mappa"
