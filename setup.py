"""Build of the optional C++ engine; everything else is declared in pyproject.toml.

The engine is one extension, `mpt_fast.kernels._cpu`. Files named `*_avx512.cpp` and `*_avx2.cpp`
are compiled for that instruction set and entered only after a run-time check of the processor;
all other files use the compiler's baseline, so one wheel runs on every machine of its platform.

MPT_FAST_ISAS says otherwise, for tests: "plain" leaves those files out, "emulated512" adds the
64-byte kernels without their instructions, "native" is the default; a comma joins two of them.
"""

import functools
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from runpy import run_path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in {"x86_64", "amd64"}
BUILD = run_path("kernels/cpu/build.py")
FLAGS, ISA_FLAGS = BUILD["FLAGS"], BUILD["ISA_FLAGS"]
# Hold little but calls of pybind11, which take half as long again to compile at -O3.
BINDINGS = (
    "cpu/arguments.cpp",
    "cpu/bind_program.cpp",
    "bitsliced_conv2d/cpu.cpp",
    "sparse_conv2d/cpu.cpp",
    "xnor_linear/cpu.cpp",
)
EMULATED = "tests/engine/kernels_emulated512_avx2.cpp"
BUILT = os.environ.get("MPT_FAST_ISAS", "native").split(",")
if not {"native", "plain", "emulated512"}.issuperset(BUILT):
    raise SystemExit(f"MPT_FAST_ISAS={','.join(BUILT)}: use native, plain, emulated512")
NATIVE = X86 and "native" in BUILT


class OptionalBuildExt(build_ext):
    """Adds per-file instruction-set flags; a failed build leaves PyTorch alone and one warning."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # any compiler failure: the package works without the engine
            self._give_up(error)

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except Exception as error:
            self._give_up(error)

    def _build(self, ext: Extension) -> None:
        import pybind11

        ext.include_dirs.append(pybind11.get_include())
        sanitize = os.environ.get("MPT_FAST_SANITIZE")
        extra = ["-g0"]
        bindings: list[str] = []
        if sanitize:  # at -O1, which compiles in a fraction of the time and keeps the lines apart
            extra = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1", "-O1"]
            extra.append("-DMPT_SANITIZED")
            # What these files hold is nearly all pybind11's, and takes minutes to instrument fully.
            bindings = ["-fno-sanitize=undefined", "-O0"]
        ext.extra_compile_args = FLAGS + extra
        ext.extra_link_args = list(extra)
        if sys.platform != "darwin":
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        compile_one = self.compiler._compile
        file_flags = {**ISA_FLAGS, "cpu/module.cpp": [f'-DMPT_SOURCE_DIGEST="{digest()}"']}
        if not sanitize:
            file_flags.update((name, ["-O1", "-ftree-vectorize"]) for name in BINDINGS)

        def compile_with_isa(obj, src, suffix, cc_args, postargs, pp_opts):  # type: ignore[no-untyped-def]
            for ending, flags in file_flags.items():
                if src.endswith(ending):
                    postargs = [*postargs, *flags]
            if bindings and "cpu/bindings.h" in Path(src).read_text(encoding="utf-8"):
                postargs = [*postargs, *bindings]
            return compile_one(obj, src, suffix, cc_args, postargs, pp_opts)

        self.compiler._compile = compile_with_isa
        self.compiler.compile = functools.partial(compile_in_parallel, self.compiler)
        super().build_extension(ext)

    def _give_up(self, error: Exception) -> None:
        if os.environ.get("MPT_FAST_REQUIRE_ENGINE") == "1":
            raise error
        print(
            f"WARNING: mpt_fast: the C++ engine was not built ({error}); packed networks will run "
            "through PyTorch. Install g++ 11 or newer and reinstall to get it.",
            file=sys.stderr,
        )


def compile_in_parallel(  # type: ignore[no-untyped-def]
    compiler, sources, output_dir=None, macros=None, include_dirs=None, debug=0,
    extra_preargs=None, extra_postargs=None, depends=None,
):  # fmt: skip
    """The compiler's own `compile`, which goes file by file, with one file per processor."""
    macros, objects, extra_postargs, pp_opts, build = compiler._setup_compile(
        output_dir, macros, include_dirs, sources, depends, extra_postargs
    )
    cc_args = compiler._get_cc_args(pp_opts, debug, extra_preargs)

    def compile_object(obj: str) -> None:
        if obj in build:
            source, suffix = build[obj]
            compiler._compile(obj, source, suffix, cc_args, extra_postargs, pp_opts)

    # The largest files first, so that none is left to compile alone at the end.
    objects_by_size = sorted(objects, key=lambda o: "kernels_" not in o)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_object, objects_by_size))
    return objects


def sources() -> list[str]:
    files = sorted(glob("kernels/**/*.cpp", recursive=True))
    files = [f for f in files if NATIVE or not f.endswith(tuple(ISA_FLAGS))]
    return files + [EMULATED] * ("emulated512" in BUILT)


def macros() -> list[tuple[str, str | None]]:
    """What a test build has more or less of."""
    found: list[tuple[str, str | None]] = [("MPT_PLAIN_ONLY", None)] if not NATIVE else []
    return found + [("MPT_EMULATED512", None)] * ("emulated512" in BUILT)


def digest() -> str:
    """What `mpt_fast.kernels.cpu` knows a stale engine by."""
    return str(BUILD["source_digest"](Path("kernels")))


setup(
    packages=[
        *find_packages(include=["mpt_fast", "mpt_fast.*"]),
        "mpt_fast.kernels",
        *[f"mpt_fast.kernels.{name}" for name in find_packages("kernels")],
    ],
    package_dir={"mpt_fast": "mpt_fast", "mpt_fast.kernels": "kernels"},
    package_data={
        "mpt_fast": ["py.typed", "**/*.yaml", "**/*.html"],
        "mpt_fast.kernels": ["**/*.h", "**/*.cpp"],
    },
    ext_modules=[
        Extension(
            "mpt_fast.kernels._cpu",
            sources=sources(),
            depends=sorted(glob("kernels/**/*.h", recursive=True)),
            include_dirs=["kernels"],
            define_macros=macros(),
            language="c++",
        )
    ],
    cmdclass={"build_ext": OptionalBuildExt},
)
