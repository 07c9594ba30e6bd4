import datetime as dt
import json
import traceback

import pytest

from flows.layers import SettingsError, environment_name, keys, parse_assignments
from flows.options import Common, overrides_of
from flows.settings import Settings, explain, load_settings
from models.nowcasting import NowcastSettings
from models.training import TrainSettings


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def origins(settings, overrides=None):
    return {s.key: s.origin for s in explain(settings, overrides)}


def test_command_line_beats_environment_beats_toml_beats_default(tmp_path, monkeypatch):
    (tmp_path / "squall.toml").write_text(
        "[train]\nepochs = 1\nbatch_size = 11\nseed = 111\n[ingest]\ntimestep = '10min'\n"
    )
    monkeypatch.setenv("SQUALL_TRAIN__EPOCHS", "2")
    monkeypatch.setenv("SQUALL_TRAIN__BATCH_SIZE", "22")
    overrides = {"train": {"epochs": 3}}
    settings = load_settings(**overrides)
    assert settings.train.epochs == 3
    assert settings.train.batch_size == 22
    assert settings.train.seed == 111
    assert settings.train.workers == 2
    assert settings.ingest.timestep == dt.timedelta(minutes=10)
    found = origins(settings, overrides)
    assert found["train.epochs"] == "command line"
    assert found["train.batch_size"] == "SQUALL_TRAIN__BATCH_SIZE"
    assert found["train.seed"] == "squall.toml"
    assert found["train.workers"] == "default"
    assert set(found) == set(keys(Settings))


def test_what_a_section_leaves_unset_does_not_override(monkeypatch):
    monkeypatch.setenv("SQUALL_TRAIN__EPOCHS", "2")
    assert load_settings(train=TrainSettings(seed=9)).train.epochs == 2
    assert load_settings(train=TrainSettings(seed=9, epochs=4)).train.epochs == 4
    assert load_settings(product=None).product == "radar"


def test_defaults_given_by_a_command_lose_to_all_that_the_user_set(monkeypatch):
    defaults = {"train": {"epochs": 5, "crop": 64}}
    assert load_settings(defaults).train.epochs == 5
    monkeypatch.setenv("SQUALL_TRAIN__EPOCHS", "2")
    settings = load_settings(defaults, train={"crop": 32})
    assert (settings.train.epochs, settings.train.crop) == (2, 32)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("SQUALL_TRAIN__EPOCS", "SQUALL_TRAIN__EPOCHS"),
        ("SQUALL_TRIAN__EPOCHS", "SQUALL_TRAIN__EPOCHS"),
        ("SQUALL_TRAIN_EPOCHS", "SQUALL_TRAIN__EPOCHS"),
        ("SQUALL_PRODCUT", "SQUALL_PRODUCT"),
        ("SQAULL_ROOT", "SQUALL_ROOT"),
    ],
)
def test_a_misspelt_variable_is_an_error_that_names_the_nearest(monkeypatch, variable, nearest):
    monkeypatch.setenv(variable, "3")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert variable in str(error.value)
    assert f"did you mean {nearest}?" in str(error.value)


def test_a_misspelt_key_is_an_error_that_names_the_nearest(tmp_path):
    (tmp_path / "squall.toml").write_text("[nowcast]\nlead_tme = '1h'\n")
    with pytest.raises(SettingsError, match=r"did you mean nowcast\.lead_time\?"):
        load_settings()
    (tmp_path / "squall.toml").unlink()
    with pytest.raises(SettingsError, match=r"did you mean train\.epochs\?"):
        load_settings(train={"epocs": 1})


def test_a_value_that_does_not_fit_says_found_expected_remedy(monkeypatch):
    monkeypatch.setenv("SQUALL_TRAIN__EPOCHS", "many")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "'many'" in str(error.value)
    assert "SQUALL_TRAIN__EPOCHS" in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_toml_is_one_line(tmp_path):
    (tmp_path / "squall.toml").write_text("product = \n")
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert "\n" not in str(error.value)


def test_every_key_can_be_set_by_its_variable(monkeypatch):
    for key in keys(Settings):
        monkeypatch.setenv(environment_name(key), "x")
    with pytest.raises(SettingsError, match="does not fit"):  # known, all of them; values bad
        load_settings()


def test_assignments_are_nested_settings():
    assert parse_assignments(["train.epochs=5", "verify.thresholds_mm_h=[1, 2]", "product=a"]) == {
        "train": {"epochs": 5},
        "verify": {"thresholds_mm_h": [1, 2]},
        "product": "a",
    }
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        parse_assignments(["train.epochs"])


def test_a_loss_is_set_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "squall.toml").write_text("[train]\nloss = 'mse + gdl'\n")
    assert load_settings().train.build_loss().terms == ((1.0, "mse"), (1.0, "gdl"))
    monkeypatch.setenv("SQUALL_TRAIN__LOSS", "crps")
    assert load_settings().train.build_loss().terms == ((1.0, "crps"),)
    given = parse_assignments(["train.loss=mse+0.5*gdl"])
    assert load_settings(**given).train.build_loss().terms == ((1.0, "mse"), (0.5, "gdl"))


def test_a_loss_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(SettingsError) as error:
        load_settings(**parse_assignments(["train.loss=mse+gld"]))
    assert str(error.value).startswith("setting train.loss does not fit: unknown loss: found 'gld'")
    assert "did you mean 'gdl'?" in str(error.value)
    assert "SQUALL_TRAIN__LOSS" in str(error.value)


def test_a_form_overrides_only_what_is_filled_in(monkeypatch):
    """Prefect's form sends back every default that the schema names, so it names none."""
    schema = TrainSettings.model_json_schema()
    for section in (schema, schema["$defs"]["NetworkSettings"]):
        for name, field in section["properties"].items():
            assert "default" not in field, name
    assert "Default: 20." in schema["properties"]["epochs"]["description"]
    monkeypatch.setenv("SQUALL_TRAIN__EPOCHS", "2")
    monkeypatch.setenv("SQUALL_TRAIN__MODEL", "mine")
    form = {"model": None, "seed": 3}  # a field left at "None" is not filled in
    settings = load_settings(train=TrainSettings.model_validate(form))
    assert (settings.train.epochs, settings.train.model, settings.train.seed) == (2, "mine", 3)


def test_a_setting_that_is_a_table_of_its_own_is_replaced_whole(tmp_path, monkeypatch):
    (tmp_path / "squall.toml").write_text(
        "[tune.space]\nseed = {integers = [0, 9]}\n[train.network]\nname = 'convlstm-strided'\n"
        "options = {strides = [2, 1]}\n"
    )
    settings = load_settings()
    assert settings.tune.space == {"seed": {"integers": [0, 9]}}
    assert settings.train.network.options == {"strides": [2, 1]}
    assert origins(settings)["tune.space"] == "squall.toml"
    space = {"network.hidden_channels": {"choice": [[4], [8]]}}
    (tmp_path / "squall.toml").unlink()
    given = parse_assignments([f"tune.space={json.dumps(space)}"])
    assert load_settings(**given).tune.space == space
    assert origins(load_settings(**given), given)["tune.space"] == "command line"
    monkeypatch.setenv("SQUALL_TUNE__SPACE", json.dumps(space))
    assert load_settings().tune.space == space


def test_an_option_that_is_not_given_leaves_what_set_says():
    common = Common(set=["ingest.source=knmi", "product=town"])
    given = overrides_of(common, ingest={"source": None, "location": "x"})
    assert given == {"ingest": {"source": "knmi", "location": "x"}, "product": "town"}
    assert overrides_of(common, ingest={"source": "odim"})["ingest"]["source"] == "odim"


@pytest.mark.parametrize(
    "given",
    [
        {"nowcast": NowcastSettings(fallback_after=None)},
        {"nowcast": NowcastSettings(fallback_after="never")},
        {"nowcast": {"fallback_after": "never"}},
    ],
)
def test_never_is_a_value_that_none_is_not(given, monkeypatch):
    assert load_settings(**given).nowcast.fallback_after is None
    assert load_settings().nowcast.fallback_after == dt.timedelta(hours=24)
    monkeypatch.setenv("SQUALL_NOWCAST__FALLBACK_AFTER", "never")
    settings = load_settings()
    assert settings.nowcast.fallback_after is None
    (setting,) = [one for one in explain(settings) if one.key == "nowcast.fallback_after"]
    assert setting.value == "never"


@pytest.mark.parametrize("product", ["..", ".", "../up", "a/b", "*", "a b", "", "-x", "a" * 101])
def test_a_product_is_a_name_and_no_way_to_another_place(product):
    with pytest.raises(SettingsError, match="product"):
        load_settings(product=product)
    with pytest.raises(SettingsError, match=r"train\.model"):
        load_settings(train={"model": product})


@pytest.mark.parametrize("root", ["s3://bucket/a*", "s3://bucket/[1]", "memory://a?b"])
def test_a_bucket_is_no_pattern(root):
    with pytest.raises(SettingsError, match="root"):
        load_settings(root=root)


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "given",
    [
        {"root": f"s3://key:{SECRET}@bucket/store"},
        {"ingest": {"location": f"https://me:{SECRET}@radar.example/files"}},
        {"ingest": {"scheduler": f"tls://me:{SECRET}@scheduler:8786"}},
        {"train": {"tracking": {"url": f"postgresql://me:{SECRET}@host/mlflow"}}},
    ],
)
def test_a_password_in_a_url_is_refused_and_shown_nowhere(given):
    """Settings are flow parameters: Prefect's UI, logs and database have them."""
    with pytest.raises(SettingsError, match=r"credential.*variables") as refused:
        load_settings(**given)
    told = "".join(traceback.format_exception(refused.value))
    assert SECRET not in told


def test_a_user_alone_is_no_secret():
    assert load_settings(root="sftp://squall@host/store").root == "sftp://squall@host/store"
