"""Plain DistributedDataParallel trains every network: no parameter is unused."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_workers_train_every_network_and_an_adversary(tmp_path):
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.ddp_worker", str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=300)
            assert worker.returncode == 0, errors[-3000:]
    finally:
        for worker in workers:
            worker.kill()
