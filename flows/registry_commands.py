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
    name
        Only this model's versions.
    json
        Print JSON.
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
    model
        NAME, for its champion, or NAME/VERSION.
    json
        Print JSON; `scores` are the sums that scores are divided from.
    """
    from flows.registry_report import details, print_version
    from models.card import read_card
    from models.registry import champion

    root = settings_of(common).root
    name, _, version = model.partition("/")
    card = read_card(root, name, version or champion(root, name))
    print(json_format.dumps(details(root, card), indent=2)) if json else print_version(root, card)


@app.command
def promote(
    model: str | None = None,
    *,
    auto: Flag = False,
    dry_run: Flag = False,
    markdown: Flag = False,
    force: Flag = False,
    why: str | None = None,
    common: Common | None = None,
) -> int:
    """Make a version the champion, which nowcasts are made with, if it is proven to be better.

    It has to beat the champion and the baselines of promote.against, by the scores of the product,
    at every declared lead time and threshold, with intervals that exclude zero. The table says how
    it did. Exit code 2, and nothing changed, where it is not proven.
    Example: squall registry promote knmi/20240601T120000Z-0a1b2c3d

    Parameters
    ----------
    model
        NAME/VERSION.
    auto
        Instead, judge every version newer than the champion; promote the newest that passes.
    dry_run
        Only print the table; exit code 0 where it would be promoted, else 1.
    markdown
        Print the table as markdown.
    force
        Promote it whatever the table says. Who did and why is remembered; so is the table.
    why
        The reason for --force.
    """
    from flows.promote import crown_and_tell, judge_challengers, served_name
    from flows.promote import promote as flow
    from flows.promotion_report import show_verdict
    from models.evidence import examine
    from models.registry import reigns

    _check_words(model, auto=auto, dry_run=dry_run, force=force, why=why)
    settings = settings_of(common)
    root, product = settings.root, settings.product
    if model is None and dry_run:
        judged = judge_challengers(root, product, served_name(settings), settings.promote)
        for verdict, _ in judged:
            show_verdict(verdict, as_markdown=markdown)
        return 0 if any(verdict.passed for verdict, _ in judged) else 1
    if model is None:
        name = served_name(settings)
        report = flow(root=root, product=product, model=name, promote=settings.promote)
        for verdict in report.verdicts:
            show_verdict(verdict, as_markdown=markdown)
        print(report)
        return 0
    name, _, version = model.partition("/")
    history = reigns(root, name)
    if history and history[-1].version == version:
        print(f"champion: {model}, already")
        return 0
    verdict, history = examine(root, product, model, settings.promote)
    show_verdict(verdict, as_markdown=markdown)
    if dry_run:
        return 0 if verdict.passed else 1
    crown_and_tell(root, product, verdict, history, forced_because=why if force else None)
    print(f"champion: {model}")
    return 0


def _check_words(
    model: str | None, *, auto: bool, dry_run: bool, force: bool, why: str | None
) -> None:
    """Raise `SquallError` for words that do not go together."""
    from pipelines.errors import SquallError

    if auto == (model is not None) or (model and not model.partition("/")[2]):
        raise SquallError(
            "no version to promote",
            found="--auto and a version" if auto else repr(model),
            expected="NAME/VERSION, or --auto",
            remedy="choose one that `squall registry list` names",
        )
    if force != (why is not None) or (why is not None and not why.strip()):
        raise SquallError(
            "--force and --why go together",
            found="--force without a reason" if force else "a reason without --force",
            expected='--force --why "…", which the registry remembers',
            remedy="say why the table is overridden, or leave both out",
        )
    if force and (auto or dry_run):
        raise SquallError(
            "--force is for one version, and in earnest",
            found="--force with --auto or --dry-run",
            expected="NAME/VERSION --force --why",
            remedy="leave one of them out",
        )


@app.command
def rollback(name: str, *, common: Common | None = None) -> None:
    """Make the champion before this one the champion again. It needs no proof: it had it.

    Example: squall registry rollback knmi

    Parameters
    ----------
    name
        The model's name.
    """
    from flows.promote import identity
    from models.registry import rollback as roll_back

    print(f"champion: {name}/{roll_back(settings_of(common).root, name, by=identity())}")
