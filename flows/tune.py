"""`squall tune`: the archive of a product, searched for the settings to train with."""

from flows.settings import Settings
from models.tune import Tuned, tune
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.compact import training_url


def tune_product(settings: Settings, *, progress: bool = False) -> tuple[Tuned, str]:
    """Search on the training layout as it is, where there is one; see `models.tune.tune`."""
    url = archive_url(settings.root, settings.product)
    if storage.exists(training_url(url)):
        url = training_url(url)
    name = settings.train.model or settings.product
    return tune(settings.root, name, url, settings.train, settings.tune, progress=progress)
