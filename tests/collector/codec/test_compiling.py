"""The package builds with and without a C compiler, says which, and works either way."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from auditspan_collector.ledger.log import LedgerState, append
from auditspan_collector.pipeline import readable
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender
from integration.whole_line import request

COLLECTOR = Path(__file__).parents[3] / "collector"
EXTENSIONS = ("transcode", "sealing", "columnar", "pairs")
RECORD = "0199d1a5-7c3e-7a94-8d5f-3b2a1c4d5e6f"
# Takes any arguments, writes them down, and makes the file that it was asked for.
RECORDER = """#!{python} -S
import json, pathlib, sys
with open({log!r}, "a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).touch()
"""
ENCODE = """
import sys
from auditspan_collector import columnar, pairs, sealing, service, transcode
from auditspan_collector.ledger.log import LedgerState, append
from auditspan_collector.pipeline.encode import encoder
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender
sender = Sender("test", tenant="default", services=None, instrumented=True)
selection = encoder(Limits())(OtlpRequest(sys.stdin.buffer.read(), "protobuf", sender, "127.0.0.1", 1))
batch, _ = append(LedgerState("a stream"), [selection.leaves])
print(transcode.__file__, sealing.__file__, columnar.__file__, pairs.__file__, transcode.COMPILED, batch.rows.hex(), batch.root.hex())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The package's source by itself, nothing of it built; Cython translates it once."""
    copy = tmp_path_factory.mktemp("source") / "collector"
    shutil.copytree(
        COLLECTOR, copy, ignore=shutil.ignore_patterns("*.so", "*.c", "build", "*.egg-info", "__pycache__")
    )
    return copy


@pytest.fixture
def build(source, tmp_path):
    """Build it with *environ*; what came of it. The package is in ``tmp_path / "lib"``."""

    # What this run of the tests asks of its own set-up is not for these builds.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUDITSPAN_")}

    def build_(**environ):
        return subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build", "--build-base", tmp_path / "base", "--build-lib", tmp_path / "lib"],
            cwd=source, env={**inherited, **environ}, check=False, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    return build_


def extensions(folder):
    return sorted(path.name for path in folder.rglob("*") if path.suffix in {".so", ".pyd"})


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"], ids=["fails", "is not there"])
def test_without_a_compiler_that_works_the_package_builds_says_so_and_encodes_as_the_readable_path(
    build, tmp_path, compiler
):
    built = build(CC=compiler)
    assert built.returncode == 0, built.stderr
    warnings = [line for line in built.stderr.splitlines() if "was not compiled" in line]
    assert [line.partition(" was not")[0] for line in warnings] == [
        f"warning: auditspan_collector.{name}" for name in EXTENSIONS
    ]
    for line in warnings:
        assert compiler in line
        assert line.endswith("A C compiler and Python's headers are needed.")
    assert extensions(tmp_path / "lib") == []

    body = request([RECORD])
    ran = subprocess.run(
        [sys.executable, "-c", ENCODE],
        input=body, env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")}, check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    sender = Sender("test", tenant="default", services=None, instrumented=True)
    leaves = readable.encode(OtlpRequest(body, "protobuf", sender, "127.0.0.1", 1), Limits()).leaves
    batch, _ = append(LedgerState("a stream"), [leaves])
    modules = [str(tmp_path / "lib" / "auditspan_collector" / f"{name}.py") for name in EXTENSIONS]
    assert ran.stdout.decode().split() == [*modules, "False", batch.rows.hex(), batch.root.hex()]


def test_where_compiling_is_required_a_compiler_that_fails_fails_the_build(build, tmp_path):
    built = build(CC="false", AUDITSPAN_REQUIRE_COMPILED="1")
    assert built.returncode != 0
    assert "false" in built.stderr
    assert "was not compiled" not in built.stderr


@pytest.fixture
def recorder(tmp_path):
    """A C compiler that writes down what it is asked; its command and that list."""
    command, log = tmp_path / "cc", tmp_path / "cc.log"
    command.write_text(RECORDER.format(python=sys.executable, log=str(log)))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return str(command), lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("sanitize", [pytest.param("1", marks=pytest.mark.long), "0"])
def test_a_sanitized_build_is_compiled_and_linked_with_addresssanitizer_and_no_other_is(
    build, recorder, tmp_path, sanitize
):
    command, asked = recorder
    built = build(CC=command, LDSHARED=f"{command} -shared", AUDITSPAN_SANITIZE=sanitize)
    assert built.returncode == 0, built.stderr
    assert "was not compiled" not in built.stderr
    compiling, linking = asked()[::2], asked()[1::2]
    assert (len(compiling), len(linking)) == (len(EXTENSIONS), len(EXTENSIONS))
    for arguments in compiling:
        assert "-c" in arguments
        # The last word on optimisation counts.
        assert [each for each in arguments if each.startswith("-O")][-1] == {"1": "-O1", "0": "-O3"}[sanitize]
    for arguments in linking:
        assert "-shared" in arguments
    for arguments in (*compiling, *linking):
        assert ("-fsanitize=address" in arguments) == (sanitize == "1")
    assert [name.partition(".")[0] for name in extensions(tmp_path / "lib")] == sorted(EXTENSIONS)
