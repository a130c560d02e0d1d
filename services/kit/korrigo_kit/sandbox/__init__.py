"""Native PDF work runs here: one forked child per document, so that no file can take a worker down.

Flows of ingest and render call `Sandbox.run`; engines only raise `EngineError`. Why and against what:
reliability.md 6 (PDF safety). The parts:

    owner.py    the process that wants work done: starts the zygote, waits for runs, judges how they ended
    zygote.py   one small single-threaded process that imported the engines once and forks per document
    child.py    the fork: confines itself, calls the engine, sends its JSON result
    confine.py  rlimits, own uid, no_new_privs, Landlock, empty network

Contract for callers and engines:
- The engine is called as `function(Path("."), **arguments)` with the workdir as its current folder, and opens
  its files by RELATIVE names. An absolute path fails after the drop when a parent folder is 0700, and Landlock
  hides everything outside the workdir (besides the interpreter, its packages and the system's fonts).
- Inputs are put INTO the workdir before the run, as copies readable by all (`BlobStore.fetch` does that); never
  hard links to stored blobs and never symbolic links. Outputs are what the engine leaves there.
- The workdir is given to the child's uid and must be removed by the caller. Runs on the same document may share
  it one after the other (they get the same uid), runs at the same time or on other documents must not.
- Everything an engine imports or reads lazily from its own package should be loaded before the drop: name the
  module in `preload`; if it has a function `warm_up()`, the zygote calls it once.
- No process or thread can be started in the child, and its stdout and stderr are only kept as `detail`.
"""

from __future__ import annotations

from korrigo_kit.sandbox.outcome import (
    EngineError,
    Limits,
    SandboxCrashed,
    SandboxLimit,
    SandboxTimeout,
)
from korrigo_kit.sandbox.owner import Sandbox

__all__ = ["EngineError", "Limits", "Sandbox", "SandboxCrashed", "SandboxLimit", "SandboxTimeout"]
