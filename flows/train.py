"""The training flow: an archive into a registered model."""

from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.settings import load_settings
from models.registry import load_model
from models.train import train_model
from models.training import TrainSettings
from pipelines.archive import archive_url

train_task = task(name="train model")(train_model)


@flow(name="train")
def train(
    root: str | None = None,
    product: str | None = None,
    train: TrainSettings | None = None,
    progress: bool = False,
) -> str:
    """Train a network on the archive of a product with Ray Train; the new champion's id.

    Parameters
    ----------
    root, product, train : override squall.toml and the environment where given
    progress : show a bar
    """
    settings = load_settings(root=root, product=product, train=train)
    name = settings.train.model or settings.product
    model_id = train_task(
        settings.root,
        name,
        archive_url(settings.root, settings.product),
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
