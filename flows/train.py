"""The training flow: an archive into a registered model."""

from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.archive import compact_task
from flows.settings import load_settings
from models.registry import load_model
from models.train import train_model
from models.training import TrainSettings
from pipelines import storage
from pipelines.archive import archive_url
from pipelines.compact import training_url

train_task = task(name="train model")(train_model)


@flow(name="train")
def train(
    root: str | None = None,
    product: str | None = None,
    train: TrainSettings | None = None,
    progress: bool = False,
) -> str:
    """Train a network on the archive of a product with Ray Train; the new champion's id.

    Where the archive has been compacted, the training layout is brought up to date and read.

    Parameters
    ----------
    root, product, train : override squall.toml and the environment where given
    progress : show a bar
    """
    settings = load_settings(root=root, product=product, train=train)
    name = settings.train.model or settings.product
    url = archive_url(settings.root, settings.product)
    if storage.exists(training_url(url)):
        compact_task(url, progress=progress)
        url = training_url(url)
    model_id = train_task(
        settings.root,
        name,
        url,
        settings.train,
        progress=progress,
    )
    model = load_model(settings.root, name, model_id.partition("/")[2])
    create_table_artifact(
        key="training-metrics",
        table=[{"model": model_id, **model.metrics}],
        description="Loss per observed pixel, normalised; persistence's on the same samples",
    )
    return model_id
