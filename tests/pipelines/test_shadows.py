"""Where shadow forecasts lie, who has them, and whose turn it was."""

import pandas as pd

from pipelines import storage
from pipelines.shadows import read_turns, shadow_forecasters, shadow_root, take_turn
from pipelines.times import clock_set_to


def add(root, forecaster, product):
    place = storage.join(shadow_root(root, forecaster), "forecasts", product, "latest.json")
    storage.write_json(place, {})


def test_forecasters_are_found_by_listing_of_a_product_or_of_any(tmp_path):
    root = str(tmp_path)
    assert shadow_forecasters(root) == []
    for name, product in (("sprog", "town"), ("net/2", "town"), ("net/1", "lake")):
        add(root, name, product)
    take_turn(root, "town", "sprog", ["sprog"])
    assert shadow_forecasters(root) == ["net/1", "net/2", "sprog"]
    assert shadow_forecasters(root, "town") == ["net/2", "sprog"]
    assert shadow_forecasters(root, "nowhere") == []


def test_turns_are_remembered_of_those_who_take_them(tmp_path):
    root = str(tmp_path)
    assert read_turns(root, "town") == {}
    with clock_set_to(pd.Timestamp("2024-06-01T05:00")):
        take_turn(root, "town", "sprog", ["sprog", "net/1"])
        take_turn(root, "lake", "linda", ["linda"])
    with clock_set_to(pd.Timestamp("2024-06-01T05:05")):
        take_turn(root, "town", "net/1", ["sprog", "net/1"])
        turns = read_turns(root, "town")
    assert sorted(turns, key=turns.__getitem__) == ["sprog", "net/1"]
    take_turn(root, "town", "net/2", ["net/1", "net/2"])
    assert set(read_turns(root, "town")) == {"net/1", "net/2"}, "sprog takes no turns any more"


def test_damaged_turns_are_as_if_none_had_been_taken(tmp_path, caplog):
    root = str(tmp_path)
    for content in (b"{", b"[1]"):
        storage.write_bytes(storage.join(root, "shadows", "town.json"), content)
        assert read_turns(root, "town") == {}
        assert "cannot be read" in caplog.text
    take_turn(root, "town", "sprog", ["sprog"])
    assert set(read_turns(root, "town")) == {"sprog"}
