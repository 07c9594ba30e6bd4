"""Training a registered model further, on another archive: another product, region or grid."""

from models.registry import Model
from models.training import TrainSettings
from pipelines.archive import Archive
from pipelines.errors import SquallError
from pipelines.times import format_duration


def fine_tuned(settings: TrainSettings, parent: Model, archive: Archive) -> TrainSettings:
    """Settings with which the parent's weights can be trained further, on another archive.

    Raises `SquallError` where the frames are not spaced as the parent's, or a setting that was
    given would make another network or another scale.
    """
    if archive.timestep != parent.timestep:
        raise SquallError(
            f"model {parent.id} was trained on another timestep",
            found=format_duration(archive.timestep),
            expected=format_duration(parent.timestep),
            remedy="fine-tune a model of this timestep",
        )
    of_parent = parent.settings
    taken_over = {
        "network": of_parent.network,
        "normalisation": of_parent.normalisation,
        "past": parent.past_frames * parent.timestep.to_pytimedelta(),
    }
    for name, value in taken_over.items():
        given = getattr(settings, name)
        if name in settings.model_fields_set and given != value:
            raise _not_the_parents(parent, name, given, value)
    result = TrainSettings.model_validate(settings.model_dump(exclude_unset=True) | taken_over)
    if result.build_loss().of_logits != of_parent.build_loss().of_logits:
        raise _not_the_parents(parent, "loss", settings.loss, of_parent.loss)
    if result.out_channels != of_parent.out_channels:
        raise _not_the_parents(parent, "members", result.out_channels, of_parent.out_channels)
    return result


def _not_the_parents(parent: Model, name: str, found: object, expected: object) -> SquallError:
    return SquallError(
        f"model {parent.id} cannot be fine-tuned with another train.{name}",
        found=found,
        expected=expected,
        remedy=f"leave train.{name} out, or train from the start (without train.fine_tune)",
    )
