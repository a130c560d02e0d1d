"""What a run may use and how it may end; the owner's side and the engines share these names.

    EngineError         said by the engine itself, or ENGINE_BUG for any other exception of it
    ├── SandboxTimeout  TIMEOUT          the wall time was over
    ├── SandboxLimit    RESOURCE_LIMIT   memory, processor time, output or recursion
    └── SandboxCrashed  CORRUPTED_PDF    native code died, or ended without a result
                        RESOURCE_LIMIT   ... while its memory was nearly used up

None of these is worth a retry by itself: the same file does the same again. What is (the zygote died, the disk
is full) is raised as `errors.Unavailable("SANDBOX_LOST")` and `errors.Exhausted("DISK_FULL")`.
"""

from __future__ import annotations

from dataclasses import dataclass

# A result is JSON about files, never the files; 64 MiB is far above any page list.
MAX_RESULT_BYTES = 64 << 20
# Native libraries are noisy; the end of what they say is enough for a log line.
MAX_DETAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run.

    `memory_bytes` counts what the run maps on top of the engines that the zygote has loaded. `output_bytes`
    bounds each file (by the kernel, at once) and their sum (looked at every second and at the end).
    """

    wall_seconds: float
    cpu_seconds: int = 60
    memory_bytes: int = 1 << 30
    output_bytes: int = 400 << 20
    open_files: int = 64


class EngineError(Exception):
    """The document cannot be processed; `reason` is UPPER_SNAKE, `message` is safe to show, `detail` is not."""

    def __init__(self, reason: str, message: str, *, detail: str = "") -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.detail = detail


class SandboxTimeout(EngineError):
    """The run was killed at its wall time."""


class SandboxLimit(EngineError):
    """The run reached a bound of its `Limits`."""


class SandboxCrashed(EngineError):
    """Native code died by a signal, or the child ended without a result."""
