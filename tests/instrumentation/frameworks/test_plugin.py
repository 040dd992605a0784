"""The guide's plug-in, built and installed as somebody else's package, beside an Auditspan that does not know Falcon."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from auditspan import extractors

from instrumentation import services

ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "examples/falcon_extractor"
GUIDE = (ROOT / "docs/frameworks/plugin.md").read_text()

ALICE = {"actor.id": "alice", "actor.origin": "authenticated", "actor.roles": ["sales", "support"]}
BOB = {"actor.id": "bob", "actor.origin": "authenticated", "actor.roles": ["sales"]}
REFUND = {"action": "REFUND", "target.type": "orders", "target.id": "7"}
LATER = ("POST", "/orders/8/refund")


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=services.environment_of(cwd / "spool", environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the plug-in's wheel was installed to, alone; nothing was downloaded."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(
        TEMPLATE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "tests")
    )
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "./source", cwd=folder)
    (wheel,) = (folder / "wheels").iterdir()
    run(*pip, "install", "--no-deps", "--no-index", "--target", "installed", str(wheel), cwd=folder)
    return folder / "installed"


def start(folder, path: Path | None):
    environment = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "", "PYTHONPATH": str(path or "")}
    command = [
        str(services.BIN / "gunicorn"),
        "--threads", "4", "--bind", "127.0.0.1:{port}", "falcon_shop:make_app()",
    ]  # fmt: skip
    return services.start(folder, command, environment, apps=TEMPLATE / "tests")


@pytest.fixture(scope="module")
def service(installed, tmp_path_factory):
    service = start(tmp_path_factory.mktemp("with"), installed)
    yield service
    service.stop()


def headers(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-token"} if name else {}


@pytest.mark.parametrize(
    ("who", "path", "expected"),
    [
        ("", "/orders", {"actor.id": "anonymous", "action": "CREATE", "outcome": "success"}),
        ("alice", "/orders/7/refund", ALICE | REFUND | {"outcome": "success", "actor.auth_method": "bearer"}),
        ("bob", "/orders/7/refund", BOB | REFUND | {"outcome": "denied", "reason": "403 Forbidden"}),
        (
            "eve",
            "/orders/7/refund",
            {"actor.id": "unknown", "outcome": "denied", "reason": "401 Unauthorized"},
        ),
        ("bob", "/orders/7/crash", BOB | {"outcome": "failure"}),
        ("bob", "/streams/whole/export", BOB | {"action": "EXPORT", "outcome": "success"}),
        ("bob", "/streams/part/export", BOB | {"outcome": "failure", "reason": "the response was cut short"}),
    ],
    ids=["anonymous", "authenticated", "denied", "refused-by-middleware", "exception", "stream", "cut-short"],
)
def test_a_plug_in_s_service_records_who_did_what(service, who, path, expected):
    trace_id = services.new_trace()
    with contextlib.suppress(httpx.HTTPError):  # of the stream that breaks off
        service.call("POST", path, trace_id=trace_id, headers=headers(who))
    (record,) = service.records(trace_id)
    assert {name: record[name] for name in expected} == expected
    assert record.span.name.startswith("POST")


def test_nothing_of_it_is_said_in_the_log(service):
    service.record(*LATER)
    assert "Auditspan" not in service.log


def test_without_the_plug_in_nobody_says_who_acts(tmp_path):
    service = start(tmp_path, None)
    try:
        record = service.record("POST", "/orders/7/refund", headers=headers("alice"))
        assert (record["actor.id"], record["action"], record["outcome"]) == ("unknown", "REFUND", "success")
    finally:
        service.stop()


def test_the_doctor_says_that_it_is_in_use(installed, tmp_path):
    environment = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "", "PYTHONPATH": str(installed)}
    said = run(str(services.BIN / "auditspan-doctor"), "--offline", cwd=tmp_path, **environment)
    assert re.search(r"^ *falcon \S+ +falcon +active +auditspan_falcon$", said, re.MULTILINE)


def test_the_plug_in_s_own_tests_pass(installed, tmp_path):
    tests = shutil.copytree(
        TEMPLATE / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__")
    )
    run(
        sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests),
        cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip


def test_the_plug_in_needs_only_the_documented_names():
    source = (TEMPLATE / "src/auditspan_falcon/__init__.py").read_text()
    assert set(re.findall(r"from (auditspan[.\w]*) import", source)) == {"auditspan.extractors"}
    used = {name for block in re.findall(r"import \(([^)]*)\)", source) for name in re.findall(r"\w+", block)}
    assert used <= set(extractors.__all__)


@pytest.mark.parametrize("name", extractors.__all__)
def test_each_name_that_a_plug_in_may_use_is_in_the_guide(name):
    assert getattr(extractors, name) is not None
    assert re.search(rf"^\| `{name}\b", GUIDE, re.MULTILINE)


def test_the_guide_names_no_other():
    rows = re.findall(r"^\| `(\w+)", GUIDE.partition("## Names")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(extractors.__all__)


def test_what_the_guide_shows_is_the_plug_in():
    source = (TEMPLATE / "src/auditspan_falcon/__init__.py").read_text()
    shown = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert shown
    for block in shown:
        for piece in block.strip("\n").split("\n\n\n"):
            assert piece in source or piece in (TEMPLATE / "tests/test_falcon.py").read_text()
