"""What a year of a product takes: `python -m infra.sizing > infra/sizing.md`.

Every figure of `MEASURED` and `PRODUCTS` is from tests/benchmarks/README.md or a store of the dated
reports, all on two CPU cores. What follows from them by multiplying is computed here; what nobody
has measured is named as such and not made up.
"""

from dataclasses import dataclass

YEAR_MIN = 365 * 24 * 60
LEAD_TIMES = 12
FORECASTERS = 5
"""The one that serves, and persistence, advection, S-PROG and a challenger beside it."""


@dataclass(frozen=True)
class Product:
    """A radar product: its grid and timestep, and what a frame of it is."""

    name: str
    timestep_min: float
    rows: int
    columns: int
    source_kb: float
    live_kb: float
    training_kb: float
    ingest_ms: float

    @property
    def frames(self) -> float:
        """A year."""
        return YEAR_MIN / self.timestep_min

    @property
    def pixels(self) -> int:
        """A frame."""
        return self.rows * self.columns

    @property
    def archive_gb(self) -> dict[str, float]:
        """A year: as files, and in both layouts."""
        kb = {"files": self.source_kb, "live": self.live_kb, "training": self.training_kb}
        return {layout: each * self.frames / 1e6 for layout, each in kb.items()}

    @property
    def forecast_mb(self) -> float:
        """A forecast."""
        return self.pixels * LEAD_TIMES * MEASURED.bytes_a_pixel / 1e6

    @property
    def forecasts_gb_a_day(self) -> float:
        """One from every frame."""
        return self.forecast_mb * self.frames / 365 / 1e3


PRODUCTS = (
    Product("KNMI", 5, 765, 700, 58, 35, 38, 29),
    Product("OPERA CIRRUS", 5, 4400, 3800, 3109, 1680, 1630, 271),
    Product("MRMS", 2, 3500, 7000, 1022, 925, 600, 196),
)


@dataclass(frozen=True)
class Measured:
    """What a unit of work takes.

    bytes_a_pixel : of a network's forecast with amounts, for each lead time (FMI's whole domain
        1.03, KNMI's 0.89)
    network_s, verify_s : for a pixel and lead time, two cores and one process (KNMI: 2.9 s for 18
        lead times; a full table of synthetic frames: 0.379 s for 12)
    writes, reads : requests of a timestep to the store: PUT, POST and LIST, and GET and HEAD; of
        the round that takes in a frame and forecasts, a round that finds nothing, and a
        verification of one forecast and two forecasters
    """

    bytes_a_pixel: float = 1.0
    network_s: float = 2.9 / (765 * 700 * 18)
    verify_s: float = 0.379 / (765 * 700 * 12)
    round: tuple[int, int] = (109, 159)
    idle: tuple[int, int] = (16, 87)
    verify: tuple[int, int] = (92, 451)


@dataclass(frozen=True)
class Prices:
    """Of a large provider's object store, US dollars, as of memory: put in your own."""

    gb_month: float = 0.023
    thousand_writes: float = 0.005
    thousand_reads: float = 0.0004


MEASURED, PRICES = Measured(), Prices()
POLL_S, KEPT_DAYS = 5, 30


def archive_row(product: Product) -> list[str]:
    """Frames and GB a year, and what forecasts take."""
    return [
        product.name,
        *(
            f"{one:,.0f}"
            for one in (
                product.frames,
                *product.archive_gb.values(),
                product.forecast_mb,
                product.forecasts_gb_a_day,
                product.forecasts_gb_a_day * KEPT_DAYS,
            )
        ),
    ]


def requests(product: Product) -> tuple[float, float]:
    """Millions a year: writes and reads, with a look every `POLL_S`."""
    looks = product.timestep_min * 60 / POLL_S - 1
    once = zip(MEASURED.round, MEASURED.verify, MEASURED.idle, strict=True)
    writes, reads = (
        product.frames * (a_round + verify + looks * idle) / 1e6 for a_round, verify, idle in once
    )
    return writes, reads


def cost_row(product: Product) -> list[str]:
    """US dollars a year: a year's archive in both layouts, forecasts of some days, requests."""
    writes, reads = requests(product)
    gb = product.archive_gb["live"] + product.archive_gb["training"]
    gb += product.forecasts_gb_a_day * KEPT_DAYS
    storage = gb * PRICES.gb_month * 12
    asked = writes * 1e3 * PRICES.thousand_writes + reads * 1e3 * PRICES.thousand_reads
    return [product.name, f"{writes:.1f}", f"{reads:.1f}", f"{storage:,.0f}", f"{asked:,.0f}"]


def load_row(product: Product) -> list[str]:
    """Seconds of a timestep, on two cores, and what runs out first."""
    timestep = product.timestep_min * 60
    needs = {
        "ingest": product.ingest_ms / 1e3,
        "network": product.pixels * LEAD_TIMES * MEASURED.network_s,
        "verify": product.pixels * LEAD_TIMES * MEASURED.verify_s * FORECASTERS / 2,
    }
    first = max(needs, key=lambda name: needs[name])
    share = sum(needs.values()) / timestep
    return [
        product.name,
        f"{timestep:.0f}",
        *(f"{one:.1f}" for one in needs.values()),
        f"{share:.0%}",
        first,
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The whole page."""
    kept = f"GB, {KEPT_DAYS} days"
    a_round = sum(MEASURED.round)
    archive = table(
        [
            "product",
            "frames a year",
            "GB, files",
            "GB, live",
            "GB, training",
            "MB a forecast",
            "GB a day, forecasts",
            kept,
        ],
        [archive_row(product) for product in PRODUCTS],
    )
    money = table(
        ["product", "million PUT, POST, LIST", "million GET, HEAD", "storage $", "requests $"],
        [cost_row(product) for product in PRODUCTS],
    )
    load = table(
        ["product", "timestep s", "ingest", "network", "verify", "share", "largest"],
        [load_row(product) for product in PRODUCTS],
    )
    return f"""# How much a year takes

Made by `python -m infra.sizing > infra/sizing.md` from figures measured on two CPU cores (tests/benchmarks/README.md,
infra/reports); a test says so. No GPU has been measured: there are no GPU-hours here.

## Archive and forecasts

A forecast has {LEAD_TIMES} lead times, rain rate and amounts, no members; an ensemble of 20 has
20 times the rain rate.

{archive}

Forecasts are what fills a store, not the archive: set `retention.keep`. Members multiply that; of large domains
keep few, or thresholds only.

## Requests and money

Requests do not depend on the grid, nor on the age of the archive (tests/benchmarks/README.md,
"Age"): a look for frames every {POLL_S} s (`nowcast.poll`, with `nowcast.watch_for`), a round and a
verification a timestep. Dollars a year by the list prices in infra/sizing.py, which are one
provider's, as of memory: put in your own. Storage is a year's archive in both layouts and
{KEPT_DAYS} days of forecasts; machines are not in it.

{money}

Most requests are looks that find nothing: `nowcast.poll` of 30 s has a sixth of them. A delivery
that tells (`squall.frame.arrived`, see prefect.yaml) needs none.

## What saturates first

Seconds of work in a timestep on two cores: ingest of a frame, the default network's forecast, and
verification of {FORECASTERS} forecasters. Training, shadow forecasts and pysteps' baselines are not
in it: S-PROG and STEPS take as long as or longer than the network (infra/reports), and share what
is left of the timestep.

{load}

| part | runs out of | then |
| --- | --- | --- |
| nowcast | the timestep, on large domains: the network on a CPU | a GPU (`nowcast.serving.device`), tiles, fewer lead times; a crop; a worker a product |
| verify | cores | more Dask workers (`verify.workers`), fewer scales or thresholds; it may lag without harm |
| shadow forecasts | the rest of the timestep | they take turns by themselves; fewer of them (`shadow.baselines`) |
| ingest of a history | decoding | a Dask scheduler with more workers (`ingest.scheduler`): frames are independent |
| training | cores or GPUs | more Ray workers (`train.workers`): the same weights to rounding |
| object store | requests a second: a round has about {a_round} | not measured beyond one product |

Nodes are added by starting them: a Prefect worker on the same pool, `ray start --address`, `dask worker ADDRESS`. Each
needs the environment, the root and its credentials, and nothing else.

## Training

320 steps of the default recipe (16 crops of 128² pixels, 6 past and 12 future frames, bfloat16) took 27 minutes on two
CPU cores beside other work. GPU-hours: not measured.
"""


if __name__ == "__main__":
    print(page(), end="")
