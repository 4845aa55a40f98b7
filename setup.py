"""The C++ kernels, `mappa_kernels._C`. Everything else about a package stands in its pyproject.toml: mappa's here, that
of the kernels alone in kernels/, where this file, csrc and the license are linked to.

Optional: without torch or a C++ compiler at build time the package installs all the same, with one warning, and
`mappa_kernels` runs on its torch reference. Each instruction set's kernels are compiled with that set's flags and
chosen at run time, so one build runs on any machine of its architecture.
"""

from __future__ import annotations

import glob
import platform
import sys
import warnings
from typing import Any

from setuptools import setup

SOURCES = ("bindings", "select", "products", "sweep", "lora", "advantage", "kernels_portable")
X86_SOURCES = {
    "kernels_avx2": ["-mavx2", "-mfma"],
    "kernels_avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
}
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-g0"]


def extension() -> dict[str, Any]:
    """The `ext_modules` and `cmdclass` arguments of setup(); none where torch is missing."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        _warn("torch is not installed where the package is built (pip: --no-build-isolation)")
        return {}
    x86 = platform.machine() in ("x86_64", "AMD64")
    names = [*SOURCES, *(X86_SOURCES if x86 else ())]
    flags = [*FLAGS, *(["-DMAPPA_X86"] if x86 else []), *(["-fopenmp"] if sys.platform == "linux" else [])]

    class OptionalBuild(BuildExtension):
        """Per-file flags; a failed build leaves a package without the extension, and a wheel for any platform."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # noqa: BLE001 - compilers fail in as many ways as there are compilers
                _warn(f"the compiler cannot be used ({error})")
                self.extensions = self.distribution.ext_modules = []
                self.get_finalized_command("bdist_wheel").root_is_pure = True

        def build_extension(self, ext: Any) -> None:
            compile_one = self.compiler._compile

            def compile_with_flags(obj: str, src: str, ext: str, cc_args: Any, extra: list[str], pp_opts: Any) -> None:
                own = next((value for name, value in X86_SOURCES.items() if f"{name}.cpp" in src), [])
                compile_one(obj, src, ext, cc_args, [*extra, *own], pp_opts)

            self.compiler._compile = compile_with_flags
            super().build_extension(ext)

    module = CppExtension(
        "mappa_kernels._C",
        [f"csrc/{name}.cpp" for name in names],
        depends=sorted(glob.glob("csrc/*.h") + glob.glob("csrc/*.inc")),
        extra_compile_args=flags,
    )
    # Ninja compiles all files with one set of flags.
    return {"ext_modules": [module], "cmdclass": {"build_ext": OptionalBuild.with_options(use_ninja=False)}}


def _warn(reason: str) -> None:
    warnings.warn(
        f"mappa_kernels._C is not built: {reason}. mappa_kernels will run on its torch reference, which is slower.",
        stacklevel=2,
    )


setup(**extension())
