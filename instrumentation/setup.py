"""Compile what a record's bytes are made with and what the SDK calls for each span, and nothing else.

Everything that can be said without code is in pyproject.toml.

Without a compiler the package installs and works all the same, and each record costs more. Set AUDITSPAN_REQUIRE_COMPILED=1
where that would be a fault (images, CI): the build fails then. AUDITSPAN_SANITIZE=1 builds with AddressSanitizer, for
`make asan`.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

_SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]


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
                f"warning: {ext.name} was not compiled ({error}); the service works without it, and each record costs "
                "it about a third more CPU. A C compiler and Python's headers are needed.\n"
            )
            self.extensions = [one for one in self.extensions if one is not ext]


sanitize = _SANITIZE if os.environ.get("AUDITSPAN_SANITIZE") == "1" else []
# One build serves Python 3.11 and all that follow, but for those without the interpreter's lock.
stable = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    ext_modules=[
        Extension(
            f"auditspan.{name}",
            [f"src/auditspan/{name}.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if stable else [],
            py_limited_api=stable,
            extra_compile_args=sanitize,
            extra_link_args=sanitize[:1],
        )
        for name in ("_packing", "_gate")
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable else {},
    cmdclass={"build_ext": BuildOptional},
)
