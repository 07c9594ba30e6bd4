"""The parts that Squall runs on, as real processes on one machine: `python -m infra.stack -h`."""
