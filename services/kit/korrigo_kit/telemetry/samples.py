"""Counters and histograms that outlive their process: every process writes its own into files, one reader sums up.

Switched on by PROMETHEUS_MULTIPROC_DIR, which `korrigo up` sets for all of its children and `korrigo work` for its
pool. The files have the format of prometheus_client, but not its rules:

* A file is named by process id and start time, so a new process never continues the file of a dead one.
* What dead processes had counted is added up in `kept.json`, and their files go. The file is replaced in one step
  and names what it took in, so a reader that is killed in between neither loses nor counts anything twice.
* Room on the disk is reserved before it is mapped: writing to a hole of a full disk would end the process.

Called by `telemetry.metrics`, which chooses the class of values, and by whoever serves /metrics.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
KEPT = "kept.json"
_LOCK = ".lock"
_FILE_BYTES = 1 << 16
# Header of a file; a process that was killed while it made its file leaves less.
_HEADER_BYTES = 8
_PREFIX = "korrigo-samples-"

log = logging.getLogger("korrigo.metrics")

# Type of the metric ("counter", "histogram") -> key of the sample (JSON) -> value.
Values = dict[str, dict[str, float]]


def folder() -> Path | None:
    """Return the folder of samples, None when this process keeps its own to itself."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def share_below(parent: Path) -> Path:
    """Make a private folder and use it in this process and in those that it starts; call before metrics are made.

    Removes the folders that killed processes left there.
    """
    for left in parent.glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).rpartition("-")[0]
        with suppress(OSError):
            if left.stat().st_uid == os.geteuid() and not is_alive(owner):
                remove(left)
    made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{identity()}-", dir=parent))
    os.environ[VARIABLE] = str(made)
    return made


def remove(path: Path) -> None:
    """Delete a folder of samples with everything in it."""
    for file in path.iterdir():
        file.unlink(missing_ok=True)
    path.rmdir()


def identity(pid: int | None = None) -> str:
    """Name a process such that no other, at any time, has that name: its id and when it started."""
    number = os.getpid() if pid is None else pid
    try:
        # The command may contain anything: the last ")" ends it (proc(5)); field 22 is the start in ticks.
        return f"{number}-{Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return f"{number}-0"


def is_alive(owner: str) -> bool:
    """Tell whether the process of that identity runs."""
    pid = owner.partition("-")[0]
    if not pid.isdigit():
        return False
    if Path("/proc/self").exists():
        return identity(int(pid)) == owner
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class _Reserved(MmapedDict):
    """A file of samples whose room is reserved on the disk before it is written to."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            if os.fstat(file.fileno()).st_size == 0:
                _reserve(file.fileno(), 0, _FILE_BYTES)
        super().__init__(str(path))  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        # More than the library's padding adds.
        while self._used + len(key.encode()) + 40 > self._capacity:
            _reserve(self._f.fileno(), self._capacity, self._capacity)
            self._capacity *= 2
            self._m = _mapped(self._f.fileno(), self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def _mapped(descriptor: int, length: int) -> Any:
    import mmap

    return mmap.mmap(descriptor, length)


def _reserve(descriptor: int, offset: int, length: int) -> None:
    try:
        os.posix_fallocate(descriptor, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, offset + length)


class _Files:
    """The files of this process, one per type of metric."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._open: dict[str, _Reserved] = {}
        # A fork shares the files of its parent and must not write to them.
        self._pid = os.getpid()

    def value(self, kind: str, key: str) -> float:
        return float(self._of(kind).read_value(key)[0])  # type: ignore[no-untyped-call]

    def write(self, kind: str, key: str, value: float) -> None:
        if os.getpid() == self._pid:
            self._of(kind).write_value(key, value, 0.0)  # type: ignore[no-untyped-call]

    def _of(self, kind: str) -> _Reserved:
        if kind not in self._open:
            directory = folder()
            assert directory is not None
            self._open[kind] = _Reserved(directory / f"{kind}_{identity()}.db")
        return self._open[kind]


_files = _Files()


class SharedValue:
    """One number of a counter or histogram, kept in this process's file; the class that prometheus_client asks for.

    Without room on the disk the number goes on in memory: it is not seen, but nothing stops.
    """

    _multiprocess = True

    def __init__(
        self, typ: str, metric_name: str, name: str, labelnames: Any, labelvalues: Any, help_text: str, **_: Any
    ) -> None:
        self._kind = typ
        self._key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self._value = 0.0
        self._is_seen = True
        with _files.lock:
            try:
                self._value = _files.value(typ, self._key)
            except OSError as error:
                self._is_seen = False
                log.warning("a sample is not kept: %s", error.strerror)

    def inc(self, amount: float) -> None:
        """Add to the number."""
        with _files.lock:
            self._value += amount
            if self._is_seen:
                _files.write(self._kind, self._key, self._value)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the number; only prometheus_client itself does so, when a metric is reset."""
        with _files.lock:
            self._value = value
            if self._is_seen:
                _files.write(self._kind, self._key, value)

    def get(self) -> float:
        """Return this process's number."""
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """Exemplars are not kept."""

    def get_exemplar(self) -> None:
        """Exemplars are not kept."""


def tidy() -> None:
    """Add up what dead processes had counted and remove their files; every process does so when it starts."""
    path = folder()
    if path is not None:
        with _locked(path):
            _take_in(path)


class SharedSamples(Collector):
    """Every counter and histogram of a folder's processes, the dead ones included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parsed: dict[str, tuple[str, str, dict[str, str], str]] = {}

    def collect(self) -> Iterable[Metric]:
        """Sum up the files."""
        with _locked(self._path):
            kept = _take_in(self._path)
            for file in _sample_files(self._path):
                _add(kept, file)
        for kind, values in kept.items():
            yield from self._metrics(kind, values)

    def describe(self) -> Iterable[Metric]:
        """Describe nothing, so that registering reads no file."""
        return []

    def _metrics(self, kind: str, values: Mapping[str, float]) -> Iterable[Metric]:
        metrics: dict[str, Metric] = {}
        buckets: dict[tuple[str, tuple[tuple[str, str], ...]], dict[float, float]] = defaultdict(dict)
        for key, value in values.items():
            if key not in self._parsed:
                self._parsed[key] = tuple(json.loads(key))
            family, name, labels, text = self._parsed[key]
            metric = metrics.setdefault(family, Metric(family, text, kind))
            if "le" in labels:
                plain = tuple(item for item in labels.items() if item[0] != "le")
                buckets[family, plain][float(labels["le"])] = value
            else:
                metric.add_sample(name, labels, value)
        for (family, plain), found in buckets.items():
            _add_buckets(metrics[family], dict(plain), found)
        return metrics.values()


def _add_buckets(metric: Metric, labels: dict[str, str], found: Mapping[float, float]) -> None:
    # Files hold every bucket by itself, the text format holds them added up.
    total = 0.0
    for bound, value in sorted(found.items()):
        total += value
        le = floatToGoString(bound)  # type: ignore[no-untyped-call]
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": le}, total)
    metric.add_sample(f"{metric.name}_count", labels, total)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other readers away: one that sees a dead process's file and its sum would count it twice."""
    with (path / _LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sample_files(path: Path) -> list[Path]:
    return sorted(path.glob("*_*.db"))


def _take_in(path: Path) -> Values:
    kept, absorbed = _kept(path)
    for name in absorbed:  # its reader was killed before it could remove them
        (path / name).unlink(missing_ok=True)
    dead = [file for file in _sample_files(path) if not is_alive(file.stem.partition("_")[2])]
    if not dead:
        return kept
    taken: Values = {kind: dict(values) for kind, values in kept.items()}
    for file in dead:
        _add(taken, file)
    try:
        _write(path, taken, [file.name for file in dead])
    except OSError as error:  # a full disk: the files stay and are read the next time too
        log.warning("samples of ended processes stay apart: %s", error.strerror)
        return kept
    for file in dead:
        file.unlink(missing_ok=True)
    return taken


def _kept(path: Path) -> tuple[Values, list[str]]:
    try:
        found = json.loads((path / KEPT).read_bytes())
    except FileNotFoundError:
        return {}, []
    return found["values"], found["absorbed"]


def _write(path: Path, values: Values, absorbed: list[str]) -> None:
    temporary = path / f"{KEPT}.new"
    with temporary.open("w") as file:
        json.dump({"absorbed": absorbed, "values": values, "at": time.time()}, file)
    temporary.replace(path / KEPT)


def _add(values: Values, file: Path) -> None:
    kind = file.stem.partition("_")[0]
    try:
        if file.stat().st_size < _HEADER_BYTES:
            return
        found = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        of_kind = values.setdefault(kind, {})
        for key, value, *_ in found:
            of_kind[key] = of_kind.get(key, 0.0) + value
    except FileNotFoundError:
        return
    except (RuntimeError, ValueError) as error:
        # A file of another make; it must not take the others with it.
        log.warning("samples in %s cannot be read: %s", file.name, error)
