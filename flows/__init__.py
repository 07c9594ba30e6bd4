"""Prefect flows and deployments, settings, the `squall` command."""
