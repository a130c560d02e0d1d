"""The sandbox from the inside: results, every bad ending, and what a child cannot reach."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.sandboxes import LIMITS, TARGETS, TESTS, is_alive, open_sandbox, pid_in, run, zygote_of
from korrigo_kit.errors import Exhausted
from korrigo_kit.sandbox import EngineError, Limits, Sandbox, SandboxCrashed, SandboxLimit, SandboxTimeout

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    os.environ["KORRIGO_TEST_SECRET"] = "must not reach a child"
    with open_sandbox() as opened:
        yield opened
    del os.environ["KORRIGO_TEST_SECRET"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_result_and_arguments_are_json(sandbox: Sandbox, work: Path) -> None:
    (work / "in.pdf").write_bytes(b"%PDF")
    arguments: dict[str, Any] = {"a": [1, 2.5, None], "b": {"é": "x" * 500_000}}
    result = run(sandbox, "echo", work, **arguments)
    assert result == {"arguments": arguments, "workdir": ".", "files": ["in.pdf"], "warm": True}


def test_files_go_in_and_out_of_a_folder_that_others_cannot_reach(sandbox: Sandbox, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    work = closed / "work"
    work.mkdir(mode=0o700)
    (work / "in").write_bytes(b"scan" * 1000)
    assert run(sandbox, "copy", work, source="in", target="out") == 4000
    assert (work / "out").read_bytes() == b"scan" * 1000


def test_engine_error_comes_back_with_its_reason(sandbox: Sandbox, work: Path) -> None:
    with pytest.raises(EngineError, match="ENCRYPTED: the document wants a password") as caught:
        run(sandbox, "refuse", work)
    assert type(caught.value) is EngineError
    assert caught.value.reason == "ENCRYPTED"
    assert caught.value.message == "the document wants a password"
    assert "deep inside" in caught.value.detail
    assert "some noise" in caught.value.detail


def test_any_other_exception_is_a_bug_of_the_engine(sandbox: Sandbox, work: Path) -> None:
    with pytest.raises(EngineError, match="ENGINE_BUG: ValueError: a bug of ours") as caught:
        run(sandbox, "fail", work)
    assert 'in fail\n    raise ValueError("a bug of ours")' in caught.value.detail
    with pytest.raises(EngineError, match="ENGINE_BUG: SystemExit"):
        run(sandbox, "quit_politely", work)
    with pytest.raises(EngineError, match="ENGINE_BUG: AttributeError"):
        run(sandbox, "no_such_function", work)
    with pytest.raises(EngineError, match="ENGINE_BUG: ModuleNotFoundError"):
        sandbox.run("no_such_module:f", {}, workdir=work, limits=LIMITS)


def test_a_loop_ends_at_the_wall_and_delays_no_neighbour(sandbox: Sandbox, tmp_path: Path) -> None:
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    slow.mkdir()
    quick.mkdir()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        looping = pool.submit(run, sandbox, "loop", slow, Limits(wall_seconds=2.0))
        pid = pid_in(slow)
        times: list[float] = []
        for _ in range(5):
            before = time.monotonic()
            run(sandbox, "echo", quick)
            times.append(time.monotonic() - before)
        with pytest.raises(SandboxTimeout) as caught:
            looping.result()
    assert caught.value.reason == "TIMEOUT"
    assert 2.0 <= time.monotonic() - started < 4.0
    assert max(times) < 1.0
    assert not is_alive(pid)


def test_signals_cannot_be_ignored(sandbox: Sandbox, work: Path) -> None:
    with pytest.raises(SandboxTimeout):
        run(sandbox, "stay", work, Limits(wall_seconds=0.5))
    assert not is_alive(pid_in(work))


@pytest.mark.parametrize(
    ("name", "arguments", "limits"),
    [
        ("allocate", {"size": 512 << 20}, LIMITS),
        ("abort_when_full", {}, LIMITS),
        ("recurse", {}, LIMITS),
        ("loop", {}, Limits(wall_seconds=20, cpu_seconds=1)),
        ("write", {"files": 1, "size": 9 << 20}, LIMITS),
        ("write", {"files": 3, "size": 3 << 20}, LIMITS),
        ("write_for_ever", {}, LIMITS),
        ("open_many", {}, LIMITS),
        ("answer", {"size": 65 << 20}, Limits(wall_seconds=20)),
        ("die", {"number": signal.SIGKILL}, LIMITS),
        ("die", {"number": signal.SIGXCPU}, LIMITS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reaching_a_bound_is_a_resource_limit(
    sandbox: Sandbox, work: Path, name: str, arguments: dict[str, Any], limits: Limits
) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError) as caught:
        run(sandbox, name, work, limits, **arguments)
    assert caught.value.reason == "RESOURCE_LIMIT"
    assert isinstance(caught.value, SandboxCrashed if name == "abort_when_full" else SandboxLimit)
    assert time.monotonic() - started < 10


def test_what_stays_below_the_bounds_passes(sandbox: Sandbox, work: Path) -> None:
    assert run(sandbox, "allocate", work, size=200 << 20) == 200 << 20
    run(sandbox, "write", work, files=2, size=3 << 20)
    assert len(run(sandbox, "answer", work, size=20 << 20)) == 20 << 20


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("segfault", {}),
        ("die", {"number": signal.SIGABRT}),
        ("die", {"number": signal.SIGBUS}),
        ("die", {"number": signal.SIGILL}),
        ("leave", {"code": 0}),
        ("leave", {"code": 7}),
    ],
)
def test_native_death_is_a_corrupted_document(
    sandbox: Sandbox, work: Path, name: str, arguments: dict[str, Any]
) -> None:
    zygote = zygote_of(sandbox)
    with pytest.raises(SandboxCrashed, match="CORRUPTED_PDF") as caught:
        run(sandbox, name, work, **arguments)
    if name == "segfault":
        assert "sandbox_targets.py" in caught.value.detail  # says where
    assert zygote_of(sandbox) == zygote
    run(sandbox, "echo", work)


def test_noise_is_bounded_and_never_blocks(sandbox: Sandbox, work: Path) -> None:
    assert run(sandbox, "shout", work, size=5 << 20) == "done"


def test_a_full_disk_is_no_fault_of_the_document(sandbox: Sandbox, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("MOUNT REFUSED: a small disk cannot be mounted here")
    try:
        with pytest.raises(Exhausted, match="DISK_FULL") as caught:
            run(sandbox, "write", disk, files=4, size=1 << 19)
        assert caught.value.status == 507
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("kind", ["symbolic", "hard", "pipe"])
def test_nothing_but_plain_files_comes_out(sandbox: Sandbox, work: Path, kind: str) -> None:
    secret = work.parent / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    with pytest.raises(EngineError):
        run(sandbox, "link", work, source=str(secret), kind=kind)
    assert os.listdir(work) == [] or not (work / "link").is_file()


def test_a_link_put_in_by_the_caller_is_refused(sandbox: Sandbox, work: Path) -> None:
    (work / "in").symlink_to("/etc/passwd")
    with pytest.raises(SandboxCrashed):
        run(sandbox, "echo", work)


def test_level_tells_what_was_achieved(sandbox: Sandbox) -> None:
    level = sandbox.level()
    assert level["limits"] and level["no_new_privileges"] and level["dies_with_zygote"] and level["no_capabilities"]
    assert level["single_threaded"] is True
    assert level["own_uid"] is (os.geteuid() == 0)
    assert set(level) >= {"network", "landlock", "seccomp"}


def test_the_child_has_nothing_it_does_not_need(sandbox: Sandbox, work: Path) -> None:
    facts = run(sandbox, "facts", work)
    assert facts["core"] == 0
    assert facts["no_new_privileges"] == 1
    assert facts["secrets"] == []
    assert facts["session"] is True
    assert facts["descriptors"] == 4  # stdin, stdout, stderr, the talk with us
    assert run(sandbox, "spawn", work) == ""


def test_the_child_reaches_nothing_outside_its_folder(sandbox: Sandbox, work: Path) -> None:
    if not sandbox.level()["landlock"]:
        pytest.skip("LANDLOCK MISSING in this kernel")
    for path in ("/etc/passwd", "/proc/self/status", "/proc/1/environ"):
        with pytest.raises(EngineError, match="PermissionError"):
            run(sandbox, "read", work, path=path)
    with pytest.raises(EngineError, match="PermissionError"):
        run(sandbox, "put", work, path="/tmp/korrigo-sandbox-escape")
    with pytest.raises(EngineError, match="PermissionError"):
        run(sandbox, "signal_process", work, pid=zygote_of(sandbox))


def test_no_network(sandbox: Sandbox, work: Path) -> None:
    level = sandbox.level()
    if not level["network"] and int(level["landlock"]) < 4:
        pytest.skip("NO NETWORK NAMESPACE and no Landlock of ABI 4 here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert run(sandbox, "connect", work, port=server.getsockname()[1]) != "connected"


@needs_root
def test_root_gives_each_run_an_unprivileged_uid_of_its_own(sandbox: Sandbox, work: Path) -> None:
    first, second = run(sandbox, "facts", work), run(sandbox, "facts", work)
    for facts in (first, second):
        assert facts["uid"] == facts["gid"] >= 61_184
        assert facts["groups"] == []
    assert first["uid"] == second["uid"]  # the same folder: a second step on the same document
    run(sandbox, "write", work, files=1, size=1)
    run(sandbox, "write", work, files=1, size=2)
    other = work.parent / "other"
    other.mkdir()
    assert run(sandbox, "facts", other)["uid"] != first["uid"]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Give a folder that any user can reach, as pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="korrigo-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_without_root_the_same_protections_but_the_uid(public_folder: Path) -> None:
    """Run the whole as an ordinary user, with the system's Python when ours lies in a private folder."""
    python = "/usr/bin/python3"
    probe = [python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
    if os.geteuid() != 0 or not os.path.exists(python) or subprocess.run(probe, check=False).returncode != 0:
        pytest.skip("needs root to change to an ordinary user, and a system Python 3.11")
    work = public_folder / "work"
    work.mkdir()
    os.chown(work, 65534, 65534)
    kit = TESTS.parent / "services" / "kit"
    code = f"""
import json, pathlib
from korrigo_kit.sandbox import *
work = pathlib.Path({str(work)!r})
with Sandbox([{TARGETS!r}], import_paths=[pathlib.Path({str(TESTS)!r})]) as sandbox:
    def run(name, **arguments):
        try:
            return sandbox.run({TARGETS!r} + ":" + name, arguments, workdir=work, limits=Limits(wall_seconds=10))
        except EngineError as error:
            return str(error)
    print(json.dumps([sandbox.level(), run("facts"), run("connect", port=1), run("read", path="/etc/passwd"),
                      run("write", files=1, size=10), run("spawn")]))
"""
    argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", python, "-c", code]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(kit), "TMPDIR": str(work)}
    done = subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    level, facts, connected, passwd, written, spawned = json.loads(done.stdout)
    assert level["own_uid"] is False
    assert level["no_new_privileges"] and level["dies_with_zygote"] and level["no_capabilities"]
    assert facts["uid"] == 65534
    assert facts["descriptors"] == 4
    assert connected != "connected" or not (level["network"] or level["landlock"] >= 4)
    assert "PermissionError" in passwd or not level["landlock"]
    assert written is None
    assert spawned == ""
