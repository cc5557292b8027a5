"""What fuzzing of the service over HTTP found stays fixed, and its bursts are the same everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.http_bursts import KINDS, Sent, burst

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "tests" / "data" / "fuzz" / "http"
SECONDS = os.environ.get("FLETCHER_FUZZ_SECONDS", "2")


def test_what_fuzzing_found_stays_fixed_and_nothing_new_turns_up(tmp_path: Path) -> None:
    """The service in a process of its own. Seed 1; FLETCHER_FUZZ_SECONDS for longer."""
    command = [sys.executable, "-m", "chaos.fuzz_http", "--seed", "1", "--seconds", SECONDS, "--replay", str(KEPT)]
    elsewhere = {**os.environ, "CHAOS_RESULTS": str(tmp_path)}  # not among the figures of `make chaos`
    done = subprocess.run(command, cwd=ROOT, env=elsewhere, capture_output=True, text=True, timeout=900)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["findings"] == [], done.stderr
    assert done.returncode == 0
    assert summary["kept"] == len(list(KEPT.glob("*.json"))) > 0
    assert summary["cases"] > summary["kept"]


@pytest.mark.parametrize("only", ["", *KINDS])
def test_a_case_is_the_same_every_time_and_can_be_kept(only: str) -> None:
    for case in range(5):
        kind, sent = burst(3, case, only)
        assert (kind, sent) == burst(3, case, only)
        assert kind == only or not only
        assert [Sent.from_json(json.loads(json.dumps(each.as_json()))) for each in sent] == sent
