"""Profiling: torch's profiler over a few steps, and peak FLOP/s of GPUs for the MFU."""

from pathlib import Path

import torch

from cli.console import say
from cli.errors import UserError

# Dense bfloat16 FLOP/s by words of the device name, from the makers' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "A100": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250X": 191e12,
}


def peak_flops(device: torch.device, bfloat16: bool) -> float | None:
    """The device's peak bfloat16 FLOP/s; None if unknown, on a CPU, or without `bfloat16`."""
    if device.type != "cuda" or not bfloat16:
        return None
    return lookup_peak_flops(torch.cuda.get_device_name(device))


def lookup_peak_flops(name: str) -> float | None:
    """The longest entry of PEAK_FLOPS whose words are all in the device name; None if there is none."""
    words = name.replace("-", " ").split()
    matches = [key for key in PEAK_FLOPS if set(key.split()) <= set(words)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def parse_window(text: str) -> tuple[int, int]:
    """Parse FIRST:LAST; `10:13` is steps 10, 11 and 12. Raises UserError."""
    begin, _, end = text.partition(":")
    if not (begin.isdigit() and end.isdigit() and 0 < int(begin) < int(end)):
        raise UserError(f"--profile {text}: must be FIRST:LAST in steps, with 0 < FIRST < LAST, such as 10:13")
    return int(begin), int(end)


class Profiler:
    """Profiles a window of steps into `profile/`, for chrome://tracing or ui.perfetto.dev."""

    def __init__(self, run: Path, window: tuple[int, int] | None, rank: int):
        self.path = run / "profile" / f"rank-{rank}.json"
        self.window, self.is_main = window, rank == 0
        self._profile: torch.profiler.profile | None = None

    def before_step(self, step: int) -> None:
        """Start or stop the profile; call it before each step."""
        if self.window and step == self.window[0]:
            self._profile = torch.profiler.profile(record_shapes=True, profile_memory=True)
            self._profile.__enter__()
        elif self._profile and self.window and step == self.window[1]:
            self.close()

    def close(self) -> None:
        """Write the profile, if one is being recorded."""
        if self._profile is None:
            return
        self._profile.__exit__(None, None, None)
        self.path.parent.mkdir(exist_ok=True)
        self._profile.export_chrome_trace(str(self.path))
        table = self._profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=-1)
        self.path.with_suffix(".txt").write_text(table)
        self._profile = None
        if self.is_main:
            say(f"profile: {self.path} (open in ui.perfetto.dev), {self.path.with_suffix('.txt')}")
