"""Frameworks that are not there, and versions of them that nobody has tried."""

from __future__ import annotations

import logging
import subprocess
import sys
import types

import pytest
from auditspan import bootstrap
from instrumentation.frameworks import other_versions

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FRAMEWORKS:
            raise ModuleNotFoundError(name)

FRAMEWORKS = {"django", "rest_framework", "flask", "fastapi", "starlette", "celery", "grpc", "aiohttp"}
sys.meta_path.insert(0, Absent())
from auditspan.bootstrap import installed_extractors
print(sorted(extractor.__name__ for extractor in installed_extractors()))
print(FRAMEWORKS & set(sys.modules))
"""


def test_every_extractor_loads_where_its_framework_is_absent():
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    loaded, imported = ran.stdout.splitlines()
    assert "auditspan.extractors.django'" in loaded
    assert loaded.count("auditspan.extractors.") >= 5
    assert imported == "set()"
    assert "can't be used" not in ran.stderr


@pytest.mark.parametrize(
    ("tested", "warns"),
    [
        (("4.2", "5.2"), False),
        (("5.2", "5.2"), False),
        (("4", "5"), False),
        (("4.2", "5.1"), True),
        (("5.3", "6.0"), True),
    ],
    ids=["inside", "the-newest-series", "major-only", "too-new", "too-old"],
)
def test_a_version_that_was_not_tested_is_said_once_and_used(monkeypatch, caplog, tested, warns):
    monkeypatch.setattr(bootstrap.importlib.metadata, "version", lambda _: "5.2.19")
    monkeypatch.setattr(bootstrap, "_said", set())
    extractor = types.SimpleNamespace(
        INSTRUMENTORS=("some:Instrumentor",),
        TESTED={"framework": tested},
        instrument=lambda _, given: {**given, "hooked": True},
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            arguments, _ = bootstrap.hooks("some:Instrumentor", {}, [extractor])
            assert arguments == {"hooked": True}
    assert [r.message.count("5.2.19 is none of the versions") for r in caplog.records] == [1] * warns


OURS = [e for e in bootstrap.installed_extractors() if e.__name__.startswith("auditspan.")]


@pytest.mark.parametrize("extractor", OURS, ids=lambda extractor: extractor.__name__.rpartition(".")[2])
def test_every_extractor_of_ours_says_what_it_was_tested_with_and_warns_of_another(
    monkeypatch, caplog, extractor
):
    assert extractor.TESTED
    monkeypatch.setattr(bootstrap, "_said", set())
    with caplog.at_level(logging.WARNING):
        bootstrap.check_versions(extractor)
        assert caplog.messages == []  # what the tests run with
        monkeypatch.setattr(bootstrap.importlib.metadata, "version", lambda _: "99.0")
        for _ in range(2):
            bootstrap.check_versions(extractor)
    assert [message.split()[1:3] for message in caplog.messages] == [
        [name, "99.0"] for name in extractor.TESTED
    ]


def test_an_extractor_without_an_instrumentor_is_looked_at_when_it_starts(monkeypatch, caplog):
    monkeypatch.setattr(bootstrap.importlib.metadata, "version", lambda _: "5.2.19")
    monkeypatch.setattr(bootstrap, "_said", set())
    started = []
    extractor = types.SimpleNamespace(
        INSTRUMENTORS=(), TESTED={"framework": ("6", "6")}, start=lambda: started.append(True)
    )
    with caplog.at_level(logging.WARNING):
        bootstrap.start_extractors([extractor])
    assert started == [True]
    assert [r.message.count("5.2.19 is none of the versions") for r in caplog.records] == [1]


def test_a_framework_that_is_not_installed_is_passed_over_and_the_next_one_is_not(monkeypatch, caplog):
    def installed(name):
        if name == "absent":
            raise bootstrap.importlib.metadata.PackageNotFoundError(name)
        return "5.2.19"

    monkeypatch.setattr(bootstrap.importlib.metadata, "version", installed)
    monkeypatch.setattr(bootstrap, "_said", set())
    with caplog.at_level(logging.WARNING):
        bootstrap.check_versions(types.SimpleNamespace(TESTED={"absent": ("1", "1"), "there": ("6", "6")}))
    assert [message.split()[1] for message in caplog.messages] == ["there"]


def test_the_page_of_versions_is_what_make_test_frameworks_tries():
    assert other_versions.PAGE.read_text() == other_versions.page()


TRIED = [
    pytest.param(name, version, id=f"{name} {version}")
    for row in other_versions.ROWS
    for name, version in row.versions.items()
    if row.python <= sys.version_info[:2]
]


@pytest.mark.parametrize(("name", "version"), TRIED)
def test_a_version_that_is_tried_is_in_its_extractor_s_range(monkeypatch, caplog, name, version):
    ranges = {
        distribution: tested
        for extractor in bootstrap.installed_extractors()
        for distribution, tested in getattr(extractor, "TESTED", {}).items()
        if distribution.lower() == name.lower()
    }
    monkeypatch.setattr(bootstrap.importlib.metadata, "version", lambda _: version)
    extractor = types.SimpleNamespace(
        INSTRUMENTORS=("some:Instrumentor",), TESTED=ranges, instrument=lambda _, given: given
    )
    bootstrap.hooks("some:Instrumentor", {}, [extractor])
    assert not [record for record in caplog.records if "none of the versions" in record.message]
