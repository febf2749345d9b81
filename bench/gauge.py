"""What a GPU and its driver say of a turn, read outside of its time: memory, energy, clocks, heat, throttling.

Of the driver NVIDIA's NVML is asked (package nvidia-ml-py, extra `gpu`). What is not told is None, never 0.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from methods.errors import first_line

if TYPE_CHECKING:
    import torch

# Bits of NVML's clocks event reasons that mean slower than asked for; the others mean idle, or clocks that were set.
THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat, by software",
    0x40: "heat, by hardware",
    0x80: "power brake",
}
NOT_THROTTLED = "none"


class Card:
    """One NVIDIA GPU; nvml: the module pynvml, initialised."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    @classmethod
    def find(cls, nvml: Any, uuid: str) -> Card:
        """By UUID, since NVML numbers all GPUs of a machine and CUDA those it was shown. Raises nvml.NVMLError.

        A slice of a shared GPU has a UUID of another kind and is not found: the whole card's energy is not its own.
        """
        nvml.nvmlInit()
        return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))

    def _ask(self, name: str, *arguments: int) -> int | None:
        """What a function of NVML answers; None where this card or driver does not say."""
        try:
            return getattr(self.nvml, name)(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None

    def facts(self) -> dict[str, int | None]:
        """What stays: the power limit, and the highest clocks."""
        return {
            "power_limit_milliwatts": self._ask("nvmlDeviceGetEnforcedPowerLimit"),
            "most_sm_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self.nvml.NVML_CLOCK_SM),
            "most_memory_mhz": self._ask("nvmlDeviceGetMaxClockInfo", self.nvml.NVML_CLOCK_MEM),
        }

    def energy_millijoules(self) -> int | None:
        """Since the driver was loaded. The counter moves some ten times a second, so one short turn is coarse."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption")

    def state(self) -> dict[str, Any]:
        """Clocks, temperature, and why the clocks are low, now."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        why = None if reasons is None else [text for bit, text in THROTTLES.items() if reasons & bit] or [NOT_THROTTLED]
        return {
            "sm_mhz": self._ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask("nvmlDeviceGetClockInfo", self.nvml.NVML_CLOCK_MEM),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", self.nvml.NVML_TEMPERATURE_GPU),
            "throttled": None if why is None else "; ".join(why),
        }


class Gauge:
    """Reads a device around the turns of sides that take turns on it. cuda: torch.cuda; None on a CPU.

    A side's peak is the device's without what the other sides hold: their drafts, caches and what their turns left.
    The target's weights, and captures made for all of them at the end of a warm-up, count in each. What a graph works
    in is its pool's, which torch does not count as allocated: on the fixed engine no peak has it.
    """

    def __init__(self, device: torch.device, cuda: Any = None, card: Card | None = None) -> None:
        self.device, self.cuda, self.card = device, cuda, card
        self.held: Counter[str] = Counter()  # bytes by side
        self.under_way: tuple[str, int] | None = None  # the turn's side, and the bytes allocated when it began

    @classmethod
    def of(cls, device: torch.device) -> Gauge:
        """With the card where there is one; why it cannot be asked is said on stderr."""
        if device.type != "cuda":
            return cls(device)
        import torch

        return cls(device, torch.cuda, _card(str(torch.cuda.get_device_properties(device).uuid)))

    def facts(self) -> dict[str, int | None] | None:
        """What stays of the card; None where there is none to ask."""
        return self.card.facts() if self.card else None

    @contextmanager
    def holding(self, side: str) -> Iterator[None]:
        """What is allocated within, and stays, is this side's."""
        before = self._allocated()
        yield
        self.held[side] += self._allocated() - before

    def begin(self, side: str) -> None:
        """Before a turn of this side, the device being idle."""
        self.settle()  # of a turn that failed, whose frames hold nothing any more
        if self.cuda is not None:
            self.under_way = side, self._allocated()
            self.cuda.reset_peak_memory_stats(self.device)
        self.energy = self.card.energy_millijoules() if self.card else None

    def end(self) -> dict[str, Any]:
        """Readings of the turn that is over, the device being idle; those that there are."""
        found: dict[str, Any] = {}
        if self.card is not None:
            energy = self.card.energy_millijoules()
            spent = None if energy is None or self.energy is None else energy - self.energy
            found = {"energy_millijoules": spent, **self.card.state()}
        if self.cuda is not None and self.under_way is not None:
            others = sum(size for side, size in self.held.items() if side != self.under_way[0])
            found["peak_memory_bytes"] = self.cuda.max_memory_allocated(self.device) - others
        self.settle()
        return found

    def settle(self) -> None:
        """What the last turn left is its side's, also where it failed."""
        if self.under_way is not None:
            side, before = self.under_way
            self.held[side] += self._allocated() - before
        self.under_way = None

    def _allocated(self) -> int:
        return 0 if self.cuda is None else self.cuda.memory_allocated(self.device)


@cache
def _card(uuid: str) -> Card | None:
    """The card, or once a process why it cannot be asked."""
    try:
        import pynvml
    except ImportError:
        print('energy, clocks and throttling are not recorded: pip install -e ".[gpu]"', file=sys.stderr)
        return None
    try:
        return Card.find(pynvml, uuid)
    except pynvml.NVMLError as error:
        print(f"energy, clocks and throttling are not recorded: NVML says {first_line(error)}", file=sys.stderr)
        return None
