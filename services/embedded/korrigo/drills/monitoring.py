"""The alerting itself is away, with data that it cannot read any more: noticed by the silence of the Watchdog.

The receiver of a drill is the dead man's switch outside the machine: it calls when two repeats in a row did not come.
Over when a test alert goes all the way again, from Prometheus's rules to the receiver.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import ClassVar

from korrigo.doctor.alerting import ALERT
from korrigo.drills.drill import Drill
from korrigo.drills.programs import Program, Units
from korrigo.drills.watch import ALERTMANAGER, PROMETHEUS, WATCHDOG
from korrigo_kit.errors import Bug

_FAILS_SECONDS = 30.0


class _AlertingDown(Drill):
    """A program of the alerting was killed, and what it remembered is damaged: it ends at once when it is started."""

    scenario = "monitoring"
    expects = (WATCHDOG,)
    falls_silent = True
    needs_silence = True
    pages = ("watchdog",)
    unit: ClassVar[str]
    damaged: ClassVar[tuple[str, ...]]

    def prepare(self) -> None:
        watch = self.stage.watch
        self._program: Program = watch.programs[self.unit]
        self._data: Path = watch.data[self.unit]
        self._units = Units(self.stage.scratch.folder / "bin", watch.programs)
        # As on a machine whose monitoring is known to the product.
        self._urls = {
            "KORRIGO_MONITORING__PROMETHEUS_URL": watch.programs[PROMETHEUS].url,
            "KORRIGO_MONITORING__ALERTMANAGER_URL": watch.programs[ALERTMANAGER].url,
        }
        self.stage.scratch.env.update(self._urls)

    def inject(self) -> None:
        self._program.kill()
        for name in self.damaged:
            path = self._data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(4096))
        # Whoever starts it again, as systemd does, sees it end again.
        self._program.spawn()
        began = time.monotonic()
        while self._program.is_alive():
            if time.monotonic() - began > _FAILS_SECONDS or self._program.is_ready():
                raise Bug("DRILL_NOT_INJECTED", f"{self.unit} reads damaged data")
            time.sleep(0.1)

    def environment(self) -> dict[str, str]:
        path = f"{self._units.folder}:{self.stage.scratch.env['PATH']}"
        watched = {"PROMETHEUS": self._urls["KORRIGO_MONITORING__PROMETHEUS_URL"],
                   "ALERTMANAGER": self._urls["KORRIGO_MONITORING__ALERTMANAGER_URL"]}  # fmt: skip
        return {"PATH": path, "UNIT": self.unit, "UNREADABLE": str(self._data), **watched}

    def is_healed(self) -> bool:
        done = self.stage.scratch.korrigo("doctor", "monitoring", "--wait", "30", "--json")
        return done.returncode == 0 and json.loads(done.stdout)["arrived"] is True

    def complaints(self) -> list[str]:
        found = [] if self.stage.watch.inbox.heard_at(ALERT) else ["the receiver never heard of the test alert"]
        kept = list(self._data.parent.glob(f"{self._data.name}.unreadable-*"))
        return found + ([] if len(kept) == 1 else [f"the damaged data are kept {len(kept)} times"])

    def undo(self) -> None:
        for name in getattr(self, "_urls", {}):
            self.stage.scratch.env.pop(name, None)
        if hasattr(self, "_units"):
            self._units.close()
        if not self._program.is_ready():
            self._program.stop()
            for name in self.damaged:
                (self._data / name).unlink(missing_ok=True)
            self._program.start()


class PrometheusDown(_AlertingDown):
    """Prometheus ended, and the power cut that ended it damaged its newest data."""

    cause = "prometheus-down"
    what = "Prometheus is killed, and cannot read its data any more"
    unit = PROMETHEUS
    damaged = ("chunks_head/000001",)


class AlertmanagerDown(_AlertingDown):
    """Alertmanager ended, and what it knew of silences and notifications is damaged."""

    cause = "alertmanager-down"
    what = "Alertmanager is killed, and cannot read its data any more"
    unit = ALERTMANAGER
    damaged = ("nflog", "silences")


DRILLS = (PrometheusDown, AlertmanagerDown)
