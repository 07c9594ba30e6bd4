"""Shadow forecasts: what challengers and baselines would have said, where no reader looks.

    {root}/shadows/{forecaster}/forecasts/{product}/…

Each forecaster, a baseline's name or a model's `name/version`, has a root of its own there, and its
forecasts lie in it as those that are served lie in theirs.
"""

from pipelines import storage


def shadow_root(root: str, forecaster: str) -> str:
    """The root under which a forecaster's shadow forecasts are."""
    return storage.join(root, "shadows", forecaster)


def shadow_forecasters(root: str) -> list[str]:
    """Who has shadow forecasts, of whatever product: names and `name/version`s, sorted."""
    found = []
    for name in storage.names(storage.join(root, "shadows")):
        inside = storage.names(shadow_root(root, name))
        found += [name] if "forecasts" in inside else [f"{name}/{version}" for version in inside]
    return sorted(found)
