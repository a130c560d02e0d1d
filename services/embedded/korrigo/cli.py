"""The command `korrigo`: a table of words; a word's module is imported when the word is used.

Every command lies in `korrigo.commands.MODULE` as a `typer.Typer` named `app`. `korrigo --help` imports none of
them, and `korrigo up` (resident as long as the product runs) imports only its own.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from korrigo import installation
from korrigo.incidents import journal
from korrigo_kit.errors import (
    Forbidden,
    Invalid,
    KorrigoError,
    NotFound,
    StateConflict,
    Timeout,
    Unauthenticated,
    Unavailable,
)

# word -> (module, what it does)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Start the whole product on this machine and keep it running."),
    "demo": ("demo", "Take a sample exam from scan to verified final PDF."),
    "run": ("run", "Serve a room: HTTP, gRPC, relay and sweeper."),
    "work": ("work", "Do a room's jobs and apply its events."),
    "migrate": ("migrate", "Bring every schema to its newest version."),
    "doctor": ("doctor", "Check this machine and the running product."),
    "incident": ("incident", "Write down what happened, and keep the evidence."),
    "stuck": ("stuck", "List what is not healed by itself."),
    "drill": ("drill", "Break a scratch instance in every known way."),
    "bench": ("bench", "Measure what this machine does in a second."),
    "intervene": ("intervene", "Heal one thing, once, in somebody's name."),
    "config": ("config", "Show the settings."),
    "user": ("user", "Add and list accounts, set passwords."),
    "audit": ("audit", "Verify the audit trail."),
    "backup": ("backup", "Make, verify, list and restore backups; answer for those of other tools."),
    "restore_backup": ("restore_backup", "Do the same as `backup restore`."),
    "read-only": ("read_only", "Refuse changes over HTTP, or allow them again."),
    "sessions": ("sessions", "End sessions before their time."),
    "secrets": ("secrets", "Change secrets without a failed request."),
    "queue": ("queue", "Show what waits in queues, jobs and outboxes."),
    "logs": ("logs", "Search the logs of this home."),
    "render": ("render", "Make a copy's final PDF outside any job."),
    "export": ("export", "Take annotations out as JSON."),
    "unlock_expired_copies": ("unlock_expired_copies", "End every lock whose lease is over."),
    "force_unlock_copy": ("force_unlock_copy", "End the lock of a copy, whoever holds it."),
    "retry_failed_tasks": ("retry_failed_tasks", "Try failed imports and final PDFs again."),
    "recover_stuck_copies": ("recover_stuck_copies", "Make copies go on that have not moved for long."),
    "cleanup_temp_files": ("cleanup_temp_files", "Remove leftovers of crashes."),
    "cleanup_orphaned_files": ("cleanup_orphaned_files", "Move to the trash what no room names."),
    "archive_old_exams": ("archive_old_exams", "Export old exams and take them out of the product."),
    "check_data_integrity": ("check_data_integrity", "Compare rows, stored bytes and the audit trail."),
    "rebuild_index": ("rebuild_index", "Make read models anew from events."),
    "export_audit_logs": ("export_audit_logs", "Write the audit trail as CSV."),
    "version": ("version", "Print the version."),
}

EXIT_UNEXPECTED = 1
EXIT_CONFIG = 78  # sysexits.h EX_CONFIG: starting again cannot help
# What scripts go by; the first class that fits counts.
_EXIT_CODES: tuple[tuple[type[KorrigoError], int], ...] = (
    (NotFound, 3),
    (StateConflict, 4),
    (Invalid, 5),
    (Forbidden, 6),
    (Unauthenticated, 6),
    (Unavailable, 7),
    (Timeout, 7),
)


def _known(word: str) -> str:
    """Return the table's spelling: the seed's words have underscores, and hyphens do as well."""
    return word if word in COMMANDS else word.replace("-", "_")


class Words(TyperGroup):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the words in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a placeholder that knows its help line."""
        found = COMMANDS.get(_known(cmd_name))
        return TyperCommand(cmd_name, help=found[1]) if found else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that was asked for."""
        word, placeholder, rest = super().resolve_command(ctx, args)
        if placeholder is None or word is None:
            return word, placeholder, rest
        module = importlib.import_module(f"korrigo.commands.{COMMANDS[_known(word)][0]}")
        command = get_command(module.app)
        command.name = word
        return word, command, rest


# Plain tracebacks: the framed ones would fill a log with boxes.
app = typer.Typer(
    cls=Words, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback()
def korrigo() -> None:
    """Marking of scanned exams on one machine or many. Example: korrigo up"""


def main() -> None:
    """Run the command line; the exit code is 0 only on success."""
    with journal.noted(sys.argv[1:]):
        _main()


def _main() -> None:
    try:
        if sys.argv[1:] == ["up"]:
            # Parsing an invocation loads pydantic, 16 MB that this process would keep as long as it runs.
            sys.exit(importlib.import_module("korrigo.commands.up").run())
        installation.join_samples()
        app()
    except KorrigoError as error:
        typer.echo(f"error: {error.message} ({error.reason})", err=True)
        sys.exit(next((code for cls, code in _EXIT_CODES if isinstance(error, cls)), EXIT_UNEXPECTED))
    except BrokenPipeError:  # `korrigo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_UNEXPECTED)
    except Exception as error:
        # SettingsError by name: its module loads pydantic, which `korrigo up` does without.
        if type(error).__name__ != "SettingsError":
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(EXIT_CONFIG)
