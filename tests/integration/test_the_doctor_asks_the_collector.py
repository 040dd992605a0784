"""A real collector judges the doctor's empty request by its token, over both protocols."""

from __future__ import annotations

import pytest
from auditspan.doctor import collector
from auditspan.doctor.report import Report
from auditspan.settings import Settings
from integration.whole_line import WholeLine

TOKEN = "token-of-the-shop-0123456789"


@pytest.fixture(scope="module")
def collecting(tmp_path_factory):
    """With a sender; there is no store, which the doctor does not ask for."""
    line = WholeLine(tmp_path_factory.mktemp("line"))
    senders = f"receiver:\n  senders: [{{name: shop, token: {TOKEN}}}]\n"
    line.config.write_text(line.config.read_text().replace("receiver:\n", senders))
    line.start_collector()
    yield line
    line.stop()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ((("authorization", f"Bearer {TOKEN}"),), None),
        (
            (("authorization", "Bearer another-0123456789"),),
            "It refuses the credentials in OTEL_AUDITSPAN_HEADERS",
        ),
        ((), "It wants credentials"),
    ],
    ids=["right", "wrong", "none"],
)
def test_the_collector_s_answer_is_told(collecting, protocol, headers, said):
    port = collecting.grpc if protocol == "grpc" else collecting.http
    report = Report()
    collector.ask(
        Settings(endpoint=f"http://127.0.0.1:{port}", protocol=protocol, headers=headers), 20.0, report
    )
    assert report.parts["collector"]["accepted"] is (said is None)
    assert report.healthy is (said is None)
    assert all(said in finding.text for finding in report.findings)
    assert all("another" not in finding.text for finding in report.findings)
