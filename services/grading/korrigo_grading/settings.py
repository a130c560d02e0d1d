"""Settings of grading: locks and logins."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, SecretStr, field_validator

from korrigo_kit.settings import Section


class LockSettings(Section):
    section: ClassVar[str] = "lock"
    ttl_seconds: int = Field(1800, ge=1, le=3600, description="Life of a lock that nobody renews.")
    stale_seconds: int = Field(600, ge=1, description="Silence of a holder after which others may ask to take over.")


class LoginSettings(Section):
    section: ClassVar[str] = "login"
    window_seconds: int = Field(900, ge=1, description="Time in which failed logins are counted.")
    account_failures: int = Field(5, ge=1, description="Failed logins of one account before it must wait.")
    address_failures: int = Field(
        30, ge=1, description="Failed logins from one client address, over all accounts, before it must wait."
    )
    password_changes_per_hour: int = Field(5, ge=1, description="Attempts of one account to change its password.")


class AlertingSettings(Section):
    section: ClassVar[str] = "alerting"
    token: SecretStr = Field(
        SecretStr(""),
        description="Bearer token (32 characters or more) that Alertmanager may show to /api/ops/alerts instead of an"
        " account's; empty = none.",
    )

    @field_validator("token")
    @classmethod
    def _is_long(cls, token: SecretStr) -> SecretStr:
        if token.get_secret_value() and len(token.get_secret_value()) < 32:
            raise ValueError("it must have 32 characters or more")
        return token


SECTIONS: tuple[type[Section], ...] = (LockSettings, LoginSettings, AlertingSettings)
