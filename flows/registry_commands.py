"""`squall registry`: list, show, promote, rollback."""

import json as json_format
from typing import Annotated

from cyclopts import App, Parameter

from flows.options import Common, settings_of

app = App(name="registry", help="List and compare trained models; say which one is the champion.")
Flag = Annotated[bool, Parameter(negative=())]


@app.command(name="list")
def list_(name: str | None = None, *, json: Flag = False, common: Common | None = None) -> None:
    """List models and their versions, newest first: champion, training window, scores.

    Scores are over all lead times of the validation, beside the best baseline's.
    Example: squall registry list knmi

    Parameters
    ----------
    name: Only this model's versions.
    json: Print JSON.
    """
    from flows.registry_report import print_versions, summary
    from models.registry import model_names, versions
    from pipelines.storage import join

    root = settings_of(common).root
    names = [name] if name else model_names(root)
    entries = [summary(root, card) for one in names for card in versions(root, one)]
    where = join(root, "models", name) if name else join(root, "models")
    print(json_format.dumps(entries, indent=2)) if json else print_versions(entries, where)


@app.command
def show(model: str, *, json: Flag = False, common: Common | None = None) -> None:
    """Show all that is known of a version: data, settings, origin, scores by lead time.

    Example: squall registry show knmi

    Parameters
    ----------
    model: NAME, for its champion, or NAME/VERSION.
    json: Print JSON; `scores` are the sums that scores are divided from.
    """
    from flows.registry_report import details, print_version
    from models.card import read_card
    from models.registry import champion

    root = settings_of(common).root
    name, _, version = model.partition("/")
    card = read_card(root, name, version or champion(root, name))
    print(json_format.dumps(details(root, card), indent=2)) if json else print_version(root, card)


@app.command
def promote(model: str, *, common: Common | None = None) -> None:
    """Make a version the champion, which nowcasts are made with. Its weights are checked first.

    Example: squall registry promote knmi/20240601T120000Z-0a1b2c3d

    Parameters
    ----------
    model: NAME/VERSION.
    """
    from models.registry import promote as promote_version
    from pipelines.errors import SquallError

    name, _, version = model.partition("/")
    if not version:
        raise SquallError(
            "no version to promote",
            found=repr(model),
            expected="NAME/VERSION",
            remedy=f"choose one that `squall registry list {name}` names",
        )
    promote_version(settings_of(common).root, name, version)
    print(f"champion: {model}")


@app.command
def rollback(name: str, *, common: Common | None = None) -> None:
    """Make the champion before this one the champion again.

    Example: squall registry rollback knmi

    Parameters
    ----------
    name: The model's name.
    """
    from models.registry import rollback as roll_back

    print(f"champion: {name}/{roll_back(settings_of(common).root, name)}")
