"""What promotion is decided by, from the stores: scores, cards, reigns; and carrying it out.

    verdict, history = examine(root, product, "knmi/20240601T…", settings)
    crown(root, verdict, history, by="alice@host")

The reigns that a verdict is against go with it: `crown` refuses where another promotion came first.
"""

import pandas as pd
import xarray as xr

from models.card import Card, read_card
from models.promotion import Learnt, judge
from models.registry import Reign, promote, reigns, versions
from models.verdict import LEAD_TIMES, PromotionSettings, Verdict
from pipelines import score_store
from pipelines.compare import DOMAIN
from pipelines.errors import NotFoundError, SquallError
from pipelines.times import format_duration, utc

COMPARED = (
    *("hits", "misses", "false_alarms", "correct_negatives"),
    *("squared_error", "absolute_error", "pixels", "fraction_error", "fraction_reference"),
)
"""The sums that are read; for crps all: those of ensembles are many, and make sense together."""

MORE_EVIDENCE = (
    "forecast a past period, challengers in shadow (`squall nowcast --since TIME --until TIME`), "
    "or wait for live forecasts; then `squall verify`, and promote again"
)


def evidence(root: str, product: str, settings: PromotionSettings) -> xr.Dataset:
    """The sums of the last `window`, of the whole domain, at the declared lead times, for `judge`.

    They are read a day at a time, so that little more than what is compared is in memory. Raises
    `NotFoundError` where nothing is.
    """
    leads = pd.TimedeltaIndex(settings.lead_times or LEAD_TIMES)
    parts: list[pd.DataFrame] = []
    until: pd.Timestamp | None = None
    for day in score_store.days(root, product)[::-1]:
        rows = score_store.read_rows(root, product, day, day + pd.Timedelta("1D"))
        rows = rows[rows["init_time"] < day + pd.Timedelta("1D")]
        if rows.empty:
            continue
        until = rows["init_time"].max() if until is None else until
        since = until - pd.Timedelta(settings.window)
        rows = rows[(rows["init_time"] >= since) & (rows["region"] == DOMAIN)]
        if rows.empty:
            break
        sums = [name for name in rows if rows[name].dtype.kind == "f"]
        others = [name for name in sums if str(name).partition("[")[0] not in COMPARED]
        rows = rows[rows["lead_time"].isin(leads)]
        parts.append(rows if settings.score == "crps" else rows.drop(columns=others))
    found = [part for part in parts if not part.empty]
    if not found:
        raise NotFoundError(
            f"no scores of {product!r} to judge by",
            found="no verified forecast of the lead times " + _texts(leads),
            expected="forecasts, in shadow those of challengers and baselines, and their scores",
            remedy=MORE_EVIDENCE,
        )
    return score_store.from_rows(pd.concat(found, ignore_index=True))


def learnt_by(root: str, model_id: str) -> tuple[list[Learnt], list[str]]:
    """What a version and its ancestors were made from; the ids of which that is unknown."""
    periods: list[Learnt] = []
    unknown: list[str] = []
    own = _card(root, model_id)
    past = _past(own) if own else pd.Timedelta(0)
    seen: set[str] = set()
    following: str | None = model_id
    while following is not None and following not in seen:
        seen.add(following)
        card = _card(root, following)
        first, last = (
            (card.archive.get("first_frame"), card.archive.get("last_frame"))
            if card
            else (None, None)
        )
        if first and last:
            periods.append(Learnt(following, utc(first), utc(last) + past))
        elif card is None or card.timestep_seconds > 0:  # frames without times are of no weather
            unknown.append(following)
        following = card.parent if card else None
    return periods, unknown


def _card(root: str, model_id: str) -> Card | None:
    name, _, version = model_id.partition("/")
    try:
        return read_card(root, name, version)
    except SquallError:
        return None


def _past(card: Card) -> pd.Timedelta:
    return (card.past_frames - 1) * pd.Timedelta(seconds=card.timestep_seconds)


def examine(
    root: str,
    product: str,
    challenger: str,
    settings: PromotionSettings,
    sums: xr.Dataset | None = None,
) -> tuple[Verdict, list[Reign]]:
    """Judge a version by the scores of a product; the verdict, and the reigns it is against.

    `sums` : the evidence, if it has been read. Raises `NotFoundError` where there is no such
    version. Where there are no scores at all, the verdict says so.
    """
    name, _, version = challenger.partition("/")
    read_card(root, name, version)
    history = reigns(root, name)
    champion = f"{name}/{history[-1].version}" if history else None
    learnt, unknown = learnt_by(root, challenger)
    if champion is not None:  # where it is not known what it learnt from, that can only help it
        learnt += learnt_by(root, champion)[0]
    if unknown:
        lacking = f"the card of {', '.join(unknown)} does not say which frames it learnt from"
        return _undecided(challenger, champion, settings, lacking), history
    try:
        sums = evidence(root, product, settings) if sums is None else sums
    except NotFoundError as error:
        return _undecided(challenger, champion, settings, error.problem), history
    return judge(sums, challenger, champion, settings, learnt), history


def _undecided(
    challenger: str, champion: str | None, settings: PromotionSettings, lacking: str
) -> Verdict:
    return Verdict(challenger, champion, settings, "", "", 0, 0, (), (lacking,))


def challengers(root: str, name: str) -> list[str]:
    """The ids of versions newer than the champion, newest first; all, where there is none."""
    history = reigns(root, name)
    known = [card.version for card in versions(root, name)]
    if history and history[-1].version in known:
        known = known[: known.index(history[-1].version)]
    return [f"{name}/{version}" for version in known]


def crown(
    root: str, verdict: Verdict, history: list[Reign], *, by: str, forced_because: str | None = None
) -> None:
    """Promote as the verdict says, or against it; either way it is remembered.

    Raises `SquallError` where it does not pass and nobody forces it, and where another promotion
    came first.
    """
    name, _, version = verdict.challenger.partition("/")
    if forced_because is not None:
        promote(
            root, name, version, how="forced", by=by, why=forced_because, verdict=verdict.summary()
        )
    elif verdict.passed:
        promote(root, name, version, how="proven", by=by, verdict=verdict.summary(), after=history)
    else:
        raise refusal(verdict)


def refusal(verdict: Verdict) -> SquallError:
    """Why a version is not promoted."""
    settings = verdict.settings
    against = verdict.against
    more = f"; and {len(against) - 3} more" if len(against) > 3 else ""
    opponents = [*(["the champion"] if verdict.champion else []), *settings.against]
    force = 'or override it: --force --why "…"'
    return SquallError(
        f"{verdict.challenger} is not proven better",
        found="; ".join(against[:3]) + more,
        expected=f"better {settings.score} than {', '.join(opponents)} at every lead time and "
        f"threshold, with {settings.level:.0%} intervals that exclude 0",
        remedy=f"{MORE_EVIDENCE}; {force}"
        if verdict.undecided
        else f"keep the champion, train another challenger, {force}",
    )


def _texts(leads: pd.TimedeltaIndex) -> str:
    return ", ".join(format_duration(lead) for lead in leads)
