"""The wall clock jumps: by an hour back, by days ahead, while records come in and while a range is on its way.

Time-outs, pauses and deadlines run on the monotonic clock. The wall clock says when a record was received, and how
long ago a range was first tried; a range whose age can't be told is read back before it is sent again.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import auditspan_collector
import pytest
from collector.service.otlp_peer import wait_until
from faults.proxy import Fault, cut
from faults.verdict import finish, judge

pytestmark = pytest.mark.timeout(600)

SHIM = Path(__file__).with_name("shifted_clock")
SOURCE = Path(auditspan_collector.__file__).parent
HOUR_S = 3600


@pytest.fixture
def clock(tmp_path):
    """Set the clock of collectors that are started with ``clock.environ``."""

    class Clock:
        def __init__(self):
            self._file = tmp_path / "shift"
            self._file.write_bytes(bytes(8))
            self.environ = {"PYTHONPATH": str(SHIM), "SHIFTED_CLOCK_FILE": str(self._file)}

        def shift(self, seconds):
            # In place: the collector has the file mapped.
            with self._file.open("r+b") as file:
                file.write(struct.pack("<q", int(seconds * 1e9)))

    return Clock()


def test_the_collector_reads_the_wall_clock_in_one_way_only():
    other = re.compile(
        r"datetime\.now|utcnow|time\.time\(|time\.(?:localtime|gmtime|ctime)|clock_gettime|from time import"
    )
    rooms = ("spool", "pipeline", "receiver", "ledger", "service.py", "clickhouse.py", "migrations.py")
    files = [
        path for room in rooms for path in [SOURCE / room, *(SOURCE / room).rglob("*.py")] if path.is_file()
    ]
    assert len(files) > 15
    assert [path for path in files if other.search(path.read_text())] == []


@pytest.mark.long
def test_jumps_under_load(line, judged, clock):
    line.start_collector(**clock.environ)
    with line.senders() as senders:
        for shift_s in (0, -HOUR_S, 40 * 24 * HOUR_S, 0, 2 * HOUR_S):
            clock.shift(shift_s)
            senders.progress(100)
    verdict = judge(line, senders, finish(line))
    received = line.rows(
        f"SELECT uniqExact(toStartOfHour(received_time)), uniqExact(toYYYYMM(received_time)) FROM {line.database}.records"
    )[0]
    assert int(received[0]) >= 4, "the records say that the collector's clock did jump"
    judged("clock jumps under load", verdict, "an hour back, 40 days ahead, back, two hours ahead")


@pytest.mark.parametrize(
    ("shift_s", "restart"),
    [
        pytest.param(-HOUR_S, True, id="back, restarted"),
        pytest.param(-HOUR_S, False, id="back", marks=pytest.mark.long),
        pytest.param(24 * HOUR_S, True, id="ahead, restarted", marks=pytest.mark.long),
        pytest.param(24 * HOUR_S, False, id="ahead", marks=pytest.mark.long),
    ],
)
def test_a_jump_while_a_range_is_on_its_way(line, judged, clock, shift_s, restart):
    line.start_collector(**clock.environ)
    with line.senders() as senders:
        senders.progress(100)
        line.wait_until_stored()
        inserts = line.proxy.inserts

        def jump():
            # The store has the range; the collector does not know, and the clock by which it could tell is wrong.
            clock.shift(shift_s)
            line.proxy.mode = "refuse"
            cut()

        line.proxy.next_inserts.append(Fault("answered", jump))
        wait_until(lambda: line.proxy.mode == "refuse", limit_s=30, what=f"an insert after {inserts}")
        senders.progress(100)
        if restart:
            line.kill_collector()
            line.start_collector(**clock.environ)
        line.proxy.heal()
        senders.progress(50)
    verdict = judge(line, senders, finish(line))
    if restart:
        # Without a restart, the driver may have repeated the request by itself before the drain heard of it.
        told = r"range \d+-\d+ was tried before: the store has (\d+) of its \1 records"
        assert re.search(told, line.collector_log())
    way = "an hour back" if shift_s < 0 else "a day ahead"
    judged(
        f"clock jumps {way} while a range is on its way{', then a restart' if restart else ''}",
        verdict,
        "read back by index, not sent again" if restart else "sent again under its token, or read back",
    )
