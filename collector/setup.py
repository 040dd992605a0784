"""Compile the hot path, and nothing else; everything that can be said without code is in pyproject.toml.

`auditspan_collector.transcode` runs as it stands, too slowly to be used; compiled it is the way of OTLP/protobuf
through the collector. Where there is no compiler the package installs without it and the readable path serves, and
`auditspan_collector.sealing` and `pairs` run as they stand, and `auditspan_collector.columnar` is not used. Set
AUDITSPAN_REQUIRE_COMPILED=1 where that would be a fault (images, CI): the build fails then. AUDITSPAN_SANITIZE=1 builds
it with AddressSanitizer, for `make asan`.
"""

from __future__ import annotations

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# The walk is many short steps; its speed is that they are compiled into each other: a fifth less time a span, measured.
_OPTIMIZE = [
    "-O3",
    "-finline-limit=5000",
    "--param",
    "inline-unit-growth=300",
    "--param",
    "large-function-growth=1000",
]
_SANITIZE = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g", "-O1"]


class BuildOptional(build_ext):
    """Build the extension, or go without it and say so."""

    def build_extension(self, ext: Extension) -> None:
        """Raises when the build fails and AUDITSPAN_REQUIRE_COMPILED=1."""
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            if os.environ.get("AUDITSPAN_REQUIRE_COMPILED") == "1":
                raise
            sys.stderr.write(
                f"warning: {ext.name} was not compiled ({error}); the collector works without it and uses about ten "
                "times the CPU for each span. A C compiler and Python's headers are needed.\n"
            )
            self.extensions = [one for one in self.extensions if one is not ext]


sanitize = _SANITIZE if os.environ.get("AUDITSPAN_SANITIZE") == "1" else []
setup(
    ext_modules=cythonize(
        [
            Extension(
                f"auditspan_collector.{name}",
                [f"src/auditspan_collector/{name}.py"],
                depends=["src/auditspan_collector/native.h"],
                include_dirs=["src/auditspan_collector"],
                extra_compile_args=sanitize or _OPTIMIZE,
                extra_link_args=sanitize[:1],
            )
            for name in ("transcode", "sealing", "columnar", "pairs")
        ],
        force=bool(sanitize),
        # The types stand in the .pxd beside each; Python's own annotations are for readers and mypy. Indexes are never
        # negative and always checked by the walk itself.
        compiler_directives={
            "language_level": 3,
            "annotation_typing": False,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
        },
        show_all_warnings=False,
        quiet=True,
    ),
    cmdclass={"build_ext": BuildOptional},
)
