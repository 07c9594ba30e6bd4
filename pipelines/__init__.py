"""Arrays in, arrays out: sources, grid, archive, samples, forecasts, scores.

Built on xarray, Dask and Zarr. Knows nothing of torch, Ray or Prefect.
"""
