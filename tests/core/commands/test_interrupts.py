"""Ctrl-C at any instruction of a command: it ends with its status, whatever ran when it came."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fletcher_core.interrupts import EXIT_STATUS, orderly_then_at_once

ROOT = Path(__file__).resolve().parents[3]
MAIN = "import sys; from fletcher_core.cli import main; sys.exit(main())"


def wait_for_interrupt() -> None:
    time.sleep(5)
    pytest.fail("the interrupt was lost")


@pytest.mark.parametrize("seed", range(4))
def test_a_command_that_starts_is_interrupted_without_a_traceback(seed: int) -> None:
    code = f"import fletcher_core.cli\nprint('ready', flush=True)\n{MAIN}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "bench"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.02 + random.Random(seed).random())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (EXIT_STATUS, "fletcher: interrupted\n")


def test_an_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted_module.py").write_text(
        "import signal, time\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(0.1)\n"
        "except KeyboardInterrupt:\n    lost = True\n"  # as extension modules do
        "else:\n    lost = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), orderly_then_at_once():  # noqa: PT012
        import interrupted_module  # type: ignore[import-not-found]

        assert not interrupted_module.lost
        wait_for_interrupt()


def test_the_second_one_ends_an_import_that_hangs(tmp_path: Path) -> None:
    (tmp_path / "hanging_module.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fletcher_core.interrupts import orderly_then_at_once\n"
        "with orderly_then_at_once():\n    import hanging_module\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == EXIT_STATUS


@pytest.mark.parametrize("interrupted_before", [False, True])
def test_one_that_comes_while_the_process_ends_prints_no_traceback(interrupted_before: bool) -> None:
    code = (
        "import atexit, signal, sys, time\n"
        "import fletcher_core.cli as cli\n"
        "atexit.register(lambda: (print('ready', flush=True), time.sleep(60)))\n"
        f"cli._run = lambda *_: signal.raise_signal(signal.SIGINT) if {interrupted_before} else 0\n"
        "sys.exit(cli.main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "bench"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (EXIT_STATUS, "fletcher: interrupted\n" if interrupted_before else "")


def test_one_that_is_lost_in_a_finalizer_is_raised_again() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), orderly_then_at_once():  # noqa: PT012
        Finalized()
        wait_for_interrupt()


def test_other_exceptions_of_a_finalizer_are_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalized:
        def __del__(self) -> None:
            raise OSError("said")

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: reported.append(str(lost.exc_value)))
    with orderly_then_at_once():
        Finalized()
    assert reported == ["said"]


def test_one_that_comes_at_the_end_of_the_last_import_is_not_raised_after_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "last_module.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with orderly_then_at_once():
        import last_module  # type: ignore[import-not-found]  # noqa: F401
    time.sleep(0.1)
