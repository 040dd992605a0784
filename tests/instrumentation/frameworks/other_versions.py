"""Ask the tests of older versions of the frameworks, each in an environment of its own: ``make test-frameworks``.

The table here is what is tried; ``docs/frameworks/versions.md`` is written from it, and a test of the default run compares
the two. What a version can't do is left out in its row, with the reason.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = REPOSITORY / "docs/frameworks/versions.md"
FOLDER = REPOSITORY / "build/frameworks"
TESTS = "tests/instrumentation"
SUITE = f"{TESTS}/frameworks/test_every_framework.py"
DJANGO = f"{TESTS}/frameworks/test_django_service.py"
AUTHENTICATION = f"{TESTS}/frameworks/test_authentication.py"

OWN_PYTHON = (3, 11)  # that the project is developed with
# What the tests themselves need, whatever the framework.
ALWAYS = ("grpcio", "httpx", "pytest", "pytest-timeout", "PyJWT", "joserfc")
ASGI = ("uvicorn", "websockets")


@dataclass(frozen=True)
class Versions:
    """One environment: *framework* in another version than constraints.txt has, and what goes with it.

    *versions* are exact, and so is what they need *beside*; *needs* come in the versions of constraints.txt. *tests* are paths with pytest's ``-k``, both
    for one run. *without* names tests, as pytest's ids end, that this version can't pass, each with the reason.
    *python* is the oldest that it runs on.
    """

    name: str
    framework: str
    versions: dict[str, str]
    needs: tuple[str, ...]
    tests: tuple[tuple[tuple[str, ...], str], ...]
    beside: dict[str, str] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    python: tuple[int, int] = OWN_PYTHON


DJANGO_NEEDS = (*ASGI, "gunicorn", "djangorestframework", "djangorestframework-simplejwt")
DJANGO_TESTS = (
    ((SUITE, AUTHENTICATION), "django or rest"),
    ((DJANGO,), ""),
)
GONE = "under ASGI, hearing of a client that leaves, since 5.0"
QUICK = (((SUITE, f"{TESTS}/policy/test_data_changes.py"), ""),)
ROWS = (
    Versions("django-6.0", "Django", {"Django": "6.0.*"}, DJANGO_NEEDS, DJANGO_TESTS, python=(3, 12)),
    Versions(
        "django-4.2",
        "Django",
        {"Django": "4.2.30", "djangorestframework": "3.16.1"},
        DJANGO_NEEDS,
        DJANGO_TESTS,
        without={
            f"{SUITE}::test_a_stream_that_the_client_leaves_has_failed[django-asgi]": GONE,
            f"{DJANGO}::test_a_client_that_leaves_a_cancelled_request[django-asgi-slow]": GONE,
            f"{DJANGO}::test_a_client_that_leaves_a_cancelled_request[django-asgi-waiting]": GONE,
            f"{DJANGO}::test_the_user_of_an_asynchronous_view_is_the_actor": "`request.auser()`, since 5.0",
        },
    ),
    Versions(
        "flask-2.3",
        "Flask",
        {"Flask": "2.3.3", "Werkzeug": "2.3.8"},
        ("Flask-Login", "Authlib", "gunicorn"),
        (
            ((SUITE, AUTHENTICATION), "flask or decorator or authlib"),
            (
                (f"{TESTS}/core/test_flask_service.py", f"{TESTS}/core/test_outcomes.py"),
                "flask or wsgi or people",
            ),
        ),
    ),
    Versions(
        "starlette-0.46",
        "FastAPI, Starlette",
        {"fastapi": "0.115.14", "starlette": "0.46.2"},
        (*ASGI, "itsdangerous", "python-multipart"),
        (
            (
                (SUITE, AUTHENTICATION),
                "(fastapi or starlette or dependency or revoked) and not (flask or rest)",
            ),
            ((f"{TESTS}/core/test_fastapi_service.py", f"{TESTS}/core/test_starlette_service.py"), ""),
            ((f"{TESTS}/frameworks/test_websockets.py",), ""),
        ),
    ),
    Versions(
        "aiohttp-3.10",
        "aiohttp server",
        {"aiohttp": "3.10.11"},
        ("aiohttp-security", "aiohttp-session", "websockets"),
        (((SUITE, f"{TESTS}/frameworks/test_aiohttp_server.py"), "aiohttp"),),
        beside={"multidict": "6.*"},
        without={
            f"{TESTS}/frameworks/test_aiohttp_server.py::test_the_example_of_the_guide_does_what_it_says": (
                "the page's example, which uses a RequestKey"
            )
        },
    ),
    Versions(
        "sqlalchemy-2.0",
        "SQLAlchemy",
        {"SQLAlchemy": "2.0.58"},
        ("aiosqlite", "flask", "greenlet"),
        (((f"{TESTS}/policy/test_data_changes.py",), ""),),
    ),
    Versions(
        "sqlalchemy-1.4",
        "SQLAlchemy",
        {"SQLAlchemy": "1.4.54"},
        ("aiosqlite", "flask", "greenlet"),
        (((f"{TESTS}/policy/test_data_changes.py",), ""),),
        without={
            f"{TESTS}/policy/test_data_changes.py::test_the_example_of_the_documentation_does_what_the_page_says": (
                "the page's example, whose mapper is that of 2.0"
            )
        },
    ),
    Versions(
        "celery-5.4",
        "Celery",
        {"celery": "5.4.0"},
        ("flask",),
        (((f"{TESTS}/core/test_celery_service.py",), ""),),
        beside={"kombu": "5.4.2", "billiard": "4.2.1"},
    ),
    Versions(
        "grpcio-1.71",
        "gRPC server",
        {"grpcio": "1.71.2"},
        (),
        (((SUITE, f"{TESTS}/core/test_grpc_service.py"), "grpc"),),
    ),
    Versions(
        "kafka-python-2.3",
        "kafka-python consumers",
        {"kafka-python": "2.3.0"},
        ("confluent-kafka", "flask"),
        (((f"{TESTS}/frameworks/test_kafka.py",), ""),),
    ),
)


def pinned() -> dict[str, str]:
    """The versions of constraints.txt, by name in lower case."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def page() -> str:
    """docs/frameworks/versions.md."""
    lines = [
        "# Versions that are tested",
        "",
        "The default run takes the versions of constraints.txt. `make test-frameworks` asks the same tests of those in the third",
        "column, each in an environment of its own. With another version the log says so once, where the extractor has a range",
        "of tested ones, and what is there to be read is read.",
        "",
        "| framework | in the default run | also | left out there |",
        "|---|---|---|---|",
    ]
    known = pinned()
    for row in ROWS:
        versions = row.versions.items()
        default = ", ".join(f"{name} {known[name.lower()]}" for name, _ in versions)
        also = ", ".join(f"{name} {version}" for name, version in versions)
        left_out = "; ".join(dict.fromkeys(row.without.values()))
        if row.python > OWN_PYTHON:
            left_out = f"not tried yet: it needs Python {'.'.join(map(str, row.python))}"
        lines.append(f"| {row.framework} | {default} | {also} | {left_out or 'nothing'} |")
    return "\n".join(lines) + "\n"


def environment(name: str, rows: tuple[Versions, ...]) -> Path:
    """The interpreter of an environment with the versions of *rows*; made anew when the table has changed."""
    folder = FOLDER / name
    python = folder / "bin/python"
    versions = {key: version for row in rows for key, version in (row.versions | row.beside).items()}
    needs = sorted({need for row in rows for need in (*ALWAYS, *row.needs)} - versions.keys())
    exact = [f"{key}=={version}" for key, version in versions.items()]
    others = {key.lower() for key in versions}
    constraints = [f"{key}=={version}" for key, version in pinned().items() if key not in others]
    wanted = "\n".join([*exact, *needs, *constraints, str(REPOSITORY)])
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "constraints.txt").write_text("\n".join(constraints))
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    (folder / "constraints.txt").write_text("\n".join(constraints))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    command += ["--disable-pip-version-check", "--constraint", str(folder / "constraints.txt")]
    subprocess.run([*command, "--editable", "instrumentation", *exact, *needs], cwd=REPOSITORY, check=True)
    stamp.write_text(wanted)
    return python


def ask(name: str, rows: tuple[Versions, ...], tests: tuple[tuple[tuple[str, ...], str], ...]) -> bool:
    """Whether *tests* pass in one environment with the versions of *rows*."""
    versions = ", ".join(f"{key} {version}" for row in rows for key, version in row.versions.items())
    print(f"==> {name}: {versions}", flush=True)
    python = environment(name, rows)
    passed = True
    for paths, words in tests:
        # Older versions warn of what is their own affair.
        command = [str(python), "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib"]
        command += ["-p", "no:warnings", *paths, *(["-k", words] if words else [])]
        command += [part for row in rows for test in row.without for part in ("--deselect", test)]
        # Modules are compiled by the first service that imports them, which takes its time.
        patient = os.environ | {"AUDITSPAN_TESTS_DEADLINE_S": "90"}
        passed = subprocess.run(command, cwd=REPOSITORY, env=patient, check=False).returncode == 0 and passed
    return passed


def oldest() -> tuple[Versions, ...]:
    """One row of each framework, the last in the table, and what the rest of the suite needs."""
    rows = {row.framework: row for row in ROWS if row.python <= sys.version_info[:2]}
    return (*rows.values(), Versions("wsgi", "WSGI", {}, ("repoze.who", "gunicorn"), ()))


def main() -> int:
    """Exit status 1 when a version fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of rows; all by default")
    parser.add_argument(
        "--quick", action="store_true", help="all of them in one environment, with fewer tests"
    )
    given = parser.parse_args()
    rows = [row for row in ROWS if not given.names or row.name in given.names]
    if given.quick:
        return 0 if ask("oldest", oldest(), QUICK) else 1
    failed = []
    for row in rows:
        if sys.version_info < row.python:
            print(f"==> {row.name}: not on Python {sys.version.split()[0]}")
        elif not ask(row.name, (row,), row.tests):
            failed.append(row.name)
    PAGE.write_text(page())
    print(f"==> {', '.join(failed)}: failed" if failed else "==> All passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
