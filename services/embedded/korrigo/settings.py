"""Settings that only the front door has."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from korrigo_kit.settings import Section


class PostgresSettings(Section):
    section: ClassVar[str] = "postgres"
    binaries: str = Field("", description="Folder of PostgreSQL programs to use instead of those that ship with us.")


class BackupSettings(Section):
    section: ClassVar[str] = "backup"
    directory: str = Field("", description="Folder of the backups; default: $KORRIGO_HOME/backups. Best another disk.")
    nightly: bool = Field(True, description="Let `korrigo up` make one every night and when the last is a day old.")
    hour: int = Field(2, ge=0, le=23, description="Hour of the nightly backup, by the machine's clock.")
    keep: int = Field(14, ge=1, description="Backups kept of each kind that is made by itself; yours stay.")


class MonitoringSettings(Section):
    section: ClassVar[str] = "monitoring"
    prometheus_url: str = Field("", description="Where `korrigo doctor` asks Prometheus; empty = there is none.")
    alertmanager_url: str = Field("", description="Where `korrigo doctor` asks Alertmanager; empty = there is none.")


class HealingSettings(Section):
    section: ClassVar[str] = "healing"
    mode: Literal["auto", "observe", "off"] = Field(
        "auto", description="What `korrigo up` does about stuck work: heal it, only tell what it would do, or nothing."
    )
    sweep_seconds: float = Field(30, gt=0, description="Time between two looks at stuck work.")


SECTIONS: tuple[type[Section], ...] = (PostgresSettings, BackupSettings, MonitoringSettings, HealingSettings)
