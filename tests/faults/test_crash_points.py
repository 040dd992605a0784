"""Crash points: what the environment variable may say, and that each name stands at one place in the code."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import auditspan_collector
import pytest
from auditspan_collector import crashpoint
from auditspan_collector.errors import ConfigError
from collector.service.child_process import run

SOURCE = Path(auditspan_collector.__file__).parent


def end_status(setting: str, code: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", f"from auditspan_collector.crashpoint import reach\n{code}"],
        env={"AUDITSPAN_CRASH_AT": setting},
        check=False,
        capture_output=True,
        timeout=30,
    ).returncode


def test_without_the_variable_a_point_does_nothing():
    assert crashpoint.armed(None) is crashpoint.armed("")
    for point in crashpoint.POINTS:
        crashpoint.armed(None)(point)


def test_a_process_ends_by_sigkill_at_its_point_and_passes_all_others():
    assert end_status("drain.begun", "reach('drain.read')\nreach('drain.begun')") == -signal.SIGKILL
    assert end_status("drain.begun", "reach('drain.read')\nreach('drain.stored')") == 0


def test_a_count_says_at_which_time():
    twice = "reach('commit.begin')\n" * 2
    assert end_status("commit.begin:3", twice) == 0
    assert end_status("commit.begin:2", twice) == -signal.SIGKILL


@pytest.mark.parametrize("setting", ["nowhere", "drain.begun:", "drain.begun:0", "drain.begun:x", ":1"])
def test_a_setting_that_would_never_crash_is_refused(setting):
    with pytest.raises(ConfigError, match=r"AUDITSPAN_CRASH_AT.*points: spool\.locked"):
        crashpoint.armed(setting)


def test_the_command_says_so_in_one_line(tmp_path):
    status, _, stderr = run(tmp_path, "collect", AUDITSPAN_CRASH_AT="nowhere")
    assert status == 2
    assert stderr.startswith("auditspan: AUDITSPAN_CRASH_AT: 'nowhere'")
    assert stderr.count("\n") == 1


def test_each_point_stands_at_one_place_in_the_code():
    found = Counter(
        name
        for path in SOURCE.rglob("*.py")
        for name in re.findall(r'crashpoint\.reach\("([a-z.]+)"\)', path.read_text())
    )
    assert found == dict.fromkeys(crashpoint.POINTS, 1)
