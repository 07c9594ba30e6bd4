"""A ConvLSTM training step and a forecast: ours against the loop as it is commonly written.

    python -m tests.benchmarks.train_step                                  # CPU, one thread
    python -m tests.benchmarks.train_step --device cuda --batch 16 64      # a GPU, CUDA events
    python -m tests.benchmarks.train_step --config radar64 --device cuda

A step is forward, loss, backward and Adam's update. Ways are timed in turns; `×` is the median of
the rounds' ratios against the first way. Memory: on the CPU bytes kept for the backward pass, on a
GPU the peak of a step, over what lies there between steps. The floor is the FLOPs that the
mathematics needs, nothing computed twice, at the rate of a large matrix product in bfloat16
(float32 for float32 ways on the CPU), measured in the same run. Before timing, every way of ours is
compared with float64; a CUDA graph holds the step of the way that it is named after.

All ways run as Squall's own workers do, with a C library that keeps freed memory
(`pipelines.workers.KEEP_MEMORY`): otherwise page faults are up to a fifth of a step on the CPU.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.catalogue import saved_bytes
from models.networks import build_model
from pipelines.workers import KEEP_MEMORY
from tests.benchmarks.naive_convlstm import NaiveConvLSTM
from tests.benchmarks.paired import in_turns, table


@dataclass(frozen=True)
class Config:
    """A network and its sequences: `frame` pixels a side, patched."""

    hidden_channels: tuple[int, ...]
    kernel: int
    frame: int
    past: int
    lead_times: int
    batch: int
    patch_size: int = 4

    def network(self, compute: str) -> nn.Module:
        if compute == "naive":
            return NaiveConvLSTM(self.hidden_channels, self.kernel, self.patch_size)
        return build_model(
            "convlstm",
            hidden_channels=self.hidden_channels,
            input_kernel=self.kernel,
            state_kernel=self.kernel,
            patch_size=self.patch_size,
            compute=compute,
        )


CONFIGS = {
    "tiny": Config((8, 8), 3, 32, 3, 3, 2),
    "shi": Config((128, 64, 64), 5, 64, 10, 10, 8),
    "radar64": Config((64, 64), 3, 256, 5, 20, 16),
    "radar128": Config((128, 64, 64), 5, 512, 10, 20, 8),
}


@dataclass
class Way:
    """One way of computing a network, with its precision."""

    name: str
    network: nn.Module
    autocast: bool
    config: Config
    past: Tensor
    future: Tensor
    graphed: bool = False

    def __post_init__(self) -> None:
        device = self.past.device
        self.network.to(device)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), 1e-4, capturable=device.type == "cuda"
        )
        self._replay: Callable[[], object] | None = None

    def loss(self) -> Tensor:
        with torch.autocast(self.past.device.type, torch.bfloat16, enabled=self.autocast):
            forecast = self.network(self.past, self.config.lead_times)
        return (forecast.float() - self.future).square().mean()

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimiser.step()

    @torch.no_grad()
    def forecast(self) -> Tensor:
        with torch.autocast(self.past.device.type, torch.bfloat16, enabled=self.autocast):
            return self.network(self.past, self.config.lead_times)

    def run(self) -> None:
        """A step: as a CUDA graph where that is wanted."""
        if not self.graphed:
            self.step()
            return
        if self._replay is None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            self.optimiser.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                self.step()
            self._replay = graph.replay
        self._replay()


def seconds(work: Callable[[], object], device: str) -> float:
    """CUDA events on a GPU; otherwise CPU time, which other processes disturb least."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.process_time()
    work()
    return time.process_time() - begun


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(12)]
    return 2 * size**3 / min(times[2:])


def flops(config: Config, batch: int) -> int:
    """Of a training step, nothing computed twice."""
    network = config.network("exact").to("meta")
    past = torch.empty(batch, config.past, 1, config.frame, config.frame, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(past, config.lead_times).sum().backward()
    return counter.get_total_flops()


def memory(way: Way, device: str) -> int:
    """Bytes: on a GPU a step's peak, over what lies there; on the CPU what is kept for backward.

    The first step does not count: it makes Adam's state, and cuDNN tries what needs most.
    """
    if device == "cuda":
        way.step()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way.step()
        return torch.cuda.max_memory_allocated() - before
    return saved_bytes(way.network, way.loss)


def check(config: Config, device: str, ways: list[str]) -> list[tuple[str, ...]]:
    """Largest relative error of forecast and gradients against float64, on a small batch."""
    torch.manual_seed(0)
    reference = config.network("reference").double()
    with torch.no_grad():
        for name, weights in reference.named_parameters():
            if "peephole" in name:
                weights.normal_(0, 0.1)
    frame = min(config.frame, 64)
    past = torch.rand(2, config.past, 1, frame, frame, dtype=torch.float64)

    def outcome(network: nn.Module, frames: Tensor) -> list[Tensor]:
        forecast = network(frames, config.lead_times)
        forecast.float().square().mean().backward()
        gradients = [weights.grad for weights in network.parameters()]
        return [tensor.detach().double().cpu() for tensor in (forecast, *gradients)]

    expected = outcome(reference, past)
    rows = []
    for name in ways:
        if name.startswith("naive") or name.endswith("graph"):
            continue
        network = config.network(name)
        network.load_state_dict(reference.state_dict())
        got = outcome(network.to(device), past.float().to(device))
        errors = [
            float((ours - exact).norm() / exact.norm())
            for ours, exact in zip(got, expected, strict=True)
        ]
        limit = 1e-2 if "bf16" in name else 1e-5
        held = "yes" if errors[0] < limit else "NO"
        rows.append((name, f"{errors[0]:.1e}", f"{max(errors[1:]):.1e}", f"{limit:.0e}", held))
    return rows


def measure(config: Config, batch: int, device: str, names: list[str], rounds: int) -> None:
    size = (batch, config.past, 1, config.frame, config.frame)
    torch.manual_seed(0)
    past = torch.rand(size, device=device)
    future = torch.rand(batch, config.lead_times, *size[2:], device=device)
    ways = {}
    for name in names:
        compute = name.removesuffix(" graph").removesuffix(" autocast")
        network = config.network(compute)
        ways[name] = Way(
            name, network, "autocast" in name, config, past, future, name.endswith("graph")
        )
    kept = {name: memory(way, device) for name, way in ways.items()}

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds(work, device)

    steps = in_turns({name: timed(way.run) for name, way in ways.items()}, rounds)
    calls = in_turns({name: timed(way.forecast) for name, way in ways.items()}, rounds)
    needed = flops(config, batch)
    rates = {dtype: matrix_rate(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows = []
    for name in names:
        low = device == "cuda" or "bf16" in name or "autocast" in name
        floor = needed / rates[torch.bfloat16 if low else torch.float32]
        median, call = statistics.median(steps[name]), statistics.median(calls[name])
        rows.append(
            (
                name,
                f"{median * 1e3:.1f}",
                f"{ratio(steps, names[0], name):.2f}",
                f"{call * 1e3:.1f}",
                f"{ratio(calls, names[0], name):.2f}",
                f"{kept[name] / 1e6:.0f}",
                f"{needed / median / 1e12:.3g}",
                f"{floor / median:.0%}",
            )
        )
    memory_head = "peak MB" if device == "cuda" else "kept MB"
    head = ("way", "step ms", "×", "forecast ms", "×", memory_head, "TFLOP/s", "of floor")
    print(f"\nbatch {batch}: {needed / 1e12:.3g} TFLOP a step; matrix product ", end="")
    print(", ".join(f"{str(d)[6:]} {rate / 1e12:.3g} TFLOP/s" for d, rate in rates.items()))
    print(table(head, rows))


def ratio(times: dict[str, list[float]], first: str, name: str) -> float:
    """How many times as fast as the first way: the median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))


def keep_memory(module: str = "tests.benchmarks.train_step") -> None:
    """Start this process again with the workers' environment, which malloc reads once."""
    wanted = {name: str(value) for name, value in KEEP_MEMORY.items()}
    if wanted.items() <= os.environ.items():
        return
    again = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, again, os.environ | wanted)


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--config", choices=CONFIGS, nargs="+", default=["shi"])
    parser.add_argument("--batch", type=int, nargs="+", help="the config's own by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", help="which ways; all by default")
    options = parser.parse_args(arguments)
    keep_memory()
    torch.set_num_threads(options.threads)
    ways = ["naive", "naive autocast", "exact", "exact-remat", "bf16", "bf16-remat"]
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
        # "naive" and "exact" are float32 proper, so that "exact" is
        torch.backends.cudnn.allow_tf32 = False
        ways += ["bf16 graph", "bf16-remat graph"]
        print(torch.cuda.get_device_name(), torch.__version__)
    ways = options.ways or ways
    for name in options.config:
        config = CONFIGS[name]
        print(f"\n{name}: {config}\nagainst float64:")
        head = ("way", "forecast", "gradients", "limit", "within")
        print(table(head, check(config, options.device, ways)))
        for batch in options.batch or [config.batch]:
            measure(config, batch, options.device, ways, options.rounds)


if __name__ == "__main__":
    main()
