"""Compiles the C++ beside this file for the machine it runs on, once, and keeps the library in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("norm.cpp")
SHARED = ("-std=c++17", "-O3", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
NATIVE = ("-march=native",)  # first; a compiler that does not know it is asked again without
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 120  # seconds for the compiler; it takes one or two


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, None where there is no compiler or it fails; `why_not` says why. 1 to 2 s when asked for the first time on a machine."""
    with suppress(OSError, subprocess.SubprocessError):
        compiler = find_compiler()
        if compiler is not None:
            return _declared(ctypes.CDLL(str(_built(compiler))))
    return None


def why_not() -> str | None:
    """Why there is no library, None if there is one."""
    if library() is not None:
        return None
    compiler = find_compiler()
    if compiler is None:
        return f"no C++ compiler ({', '.join(COMPILERS)}, or what CXX names) was found"
    return f"{compiler} could not compile {SOURCE.name}, or the cache folder cannot be written"


def find_compiler() -> str | None:
    """What the environment's CXX names, or the first of the usual names; None with an empty CXX."""
    named = os.environ.get("CXX")
    names = COMPILERS if named is None else (named,)
    return next((found for found in map(shutil.which, names) if found), None)


def _built(compiler: str) -> Path:
    """The library's path; compiled if it is not there. Raises OSError or SubprocessError."""
    key = hashlib.sha256("\n".join([SOURCE.read_text(), *SHARED, *NATIVE, compiler, _machine()]).encode()).hexdigest()
    path = cache_folder() / f"norm-{key[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            _compile(compiler, made)
            os.replace(made, path)  # at once, also if several processes compile
    return path


def _compile(compiler: str, to: Path) -> None:
    for flags in (NATIVE, ()):
        command = [compiler, *SHARED, *flags, str(SOURCE), "-o", str(to)]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
        if done.returncode == 0:
            return
    done.check_returncode()


def cache_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("autokd") / "kernels"


def _machine() -> str:
    """What -march=native depends on: a home folder may be shared by machines of several kinds."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        told = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), None)
        if told is not None:
            return told
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


def _declared(compiled: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count, number, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    compiled.norm_forward.argtypes = [
        word,
        *[pointer] * 3,
        count,
        count,
        *[pointer] * 2,
        number,
        number,
        *[pointer] * 4,
        word,
    ]
    compiled.norm_backward.argtypes = [word, *[pointer] * 5, count, count, *[pointer] * 6, word]
    compiled.norm_frozen.argtypes = [word, *[pointer] * 3, count, count, *[pointer] * 2, number, *[pointer] * 2, word]
    for function in (compiled.norm_forward, compiled.norm_backward, compiled.norm_frozen):
        function.restype = None
    return compiled
