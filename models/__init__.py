"""Networks, baselines, losses, training, registry, prediction. Knows nothing of Prefect."""
