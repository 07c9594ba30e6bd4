"""What a network's forecasts of validation samples are worth, beside persistence's.

Sums first, divided last: the sums of workers add up, so their number changes no score. A sample
counts as many times as its weight says.

Shapes: B batch, L lead times, H×W pixels.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.data import Batch
from models.losses import Loss

Sums = dict[str, Float[Tensor, "..."]]
"""By name, float64; sums of several workers or batches add up."""
FORECASTERS = ("validation", "persistence")


@torch.no_grad()
def validate(
    network: nn.Module,
    validation: Iterable[Batch],
    loss: Loss,
    thresholds_mm_h: tuple[float, ...] = (),
    *,
    autocast: bool = False,
) -> Sums:
    """Of the network and of persistence, on the same samples.

    Returns
    -------
    samples : their summed weight
    {validation, persistence}_loss : the summed loss of each sample
    {validation, persistence}_events : (L, threshold, 3) hits, misses and false alarms in pixels
    """
    network.eval()
    total: Sums = {}
    for batch in validation:
        with torch.autocast(batch.past.device.type, torch.bfloat16, enabled=autocast):
            output = network(batch.past, batch.future.shape[1])
        newest = loss.from_rain(batch.past[:, -1:, :1]).expand_as(batch.future)
        weight = batch.weight if batch.weight is not None else torch.ones(len(batch.past))
        weight = weight.to(batch.past.device, torch.float64)
        sums = {"samples": weight.sum()}
        outputs = (output.to(batch.future.dtype), newest)
        for name, forecast in zip(FORECASTERS, outputs, strict=True):
            losses = [
                loss(forecast[k : k + 1], batch.future[k : k + 1], batch.observed[k : k + 1])
                for k in range(len(weight))
            ]
            sums[f"{name}_loss"] = weight @ torch.stack(losses).double()
            events = _events(loss, forecast, batch, thresholds_mm_h)
            sums[f"{name}_events"] = torch.einsum("b,blte->lte", weight, events)
        total = {name: total[name] + value for name, value in sums.items()} if total else sums
    return total


@torch.no_grad()
def forecast_mm_h(network: nn.Module, batch: Batch, loss: Loss) -> Float[Tensor, "B L 1 H W"]:
    """A network's forecast in mm/h; of an ensemble, its mean."""
    network.eval()
    output = network(batch.past, batch.future.shape[1]).to(batch.future.dtype)
    return loss.normalisation.decode(loss.to_rain(output)).mean(2, keepdim=True)


def _events(
    loss: Loss,
    forecast: Float[Tensor, "B L M H W"],
    batch: Batch,
    thresholds_mm_h: tuple[float, ...],
) -> Float[Tensor, "B L threshold 3"]:
    """Hits, misses and false alarms of each sample; an ensemble forecasts its mean."""
    decode = loss.normalisation.decode
    rain = decode(loss.to_rain(forecast)).mean(2, keepdim=True)
    target = decode(batch.future)
    counts = []
    for threshold in thresholds_mm_h:
        foreseen = (rain >= threshold) & batch.observed
        came = (target >= threshold) & batch.observed
        kinds = (foreseen & came, ~foreseen & came, foreseen & ~came)
        counts.append(torch.stack([kind.sum((2, 3, 4)) for kind in kinds], dim=-1))
    size = (*batch.future.shape[:2], 0, 3)
    return (torch.stack(counts, dim=2) if counts else target.new_zeros(size)).double()


def metrics(
    sums: Mapping[str, Tensor], thresholds_mm_h: tuple[float, ...] = ()
) -> dict[str, float]:
    """Mean losses, and CSI over all lead times; none without samples.

    `validation_csi_0.5mm_h` and `persistence_csi_0.5mm_h`: where nothing was to be foreseen and
    nothing was, there is none.
    """
    if not sums:
        return {}
    result = {
        "validation_loss": float(sums["validation_loss"] / sums["samples"]),
        "validation_persistence": float(sums["persistence_loss"] / sums["samples"]),
    }
    for name in FORECASTERS:
        for k, threshold in enumerate(thresholds_mm_h):
            events = sums[f"{name}_events"][:, k].sum(0)
            result |= _csi(f"{name}_csi_{threshold:g}mm_h", events)
    return result


def metrics_by_lead(
    sums: Mapping[str, Tensor], thresholds_mm_h: tuple[float, ...], leads: Sequence[str]
) -> dict[str, float]:
    """CSI of the network by threshold and lead time, such as `validation_csi_0.5mm_h_15min`."""
    result: dict[str, float] = {}
    if sums:
        for lead, of_lead in zip(leads, sums["validation_events"], strict=True):
            for threshold, events in zip(thresholds_mm_h, of_lead, strict=True):
                result |= _csi(f"validation_csi_{threshold:g}mm_h_{lead}", events)
    return result


def _csi(name: str, events: Float[Tensor, "3"]) -> dict[str, float]:
    """Critical success index of hits, misses and false alarms."""
    return {name: float(events[0] / events.sum())} if events.sum() else {}
