"""What this machine can do, measured once and remembered."""

import json
import os
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tony"
HUGE_PAGES = "glibc.malloc.hugetlb"  # tunable of glibc 2.35 and later


def use_huge_pages() -> None:
    """Start this program anew with glibc's allocator on huge pages, where it has them and was not told otherwise.

    XLA gives a program's memory back after each step; getting it again in pages of 4 KiB took a sixth of the step.
    The allocator reads its settings only when a process starts.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if HUGE_PAGES in given or not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [given, f"{HUGE_PAGES}=1"]))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_programs() -> None:
    """Have JAX keep compiled programs between processes; before it is imported."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def peak_flops() -> float:
    """Floating-point operations a second of a large bfloat16 product with float32 sums, the best of a few tries."""
    import jax

    path = CACHE / "peak.json"
    name = f"{platform.node()}/{jax.default_backend()}/{jax.device_count()}/{os.cpu_count()}"
    try:
        return float(json.loads(path.read_text())[name])
    except (OSError, ValueError, KeyError):
        pass
    measured = _measure_peak()
    with suppress(OSError):  # where nothing can be kept it is measured again each time
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: measured}))
    return measured


def _measure_peak(size: int = 1024) -> float:
    import jax
    import jax.numpy as jnp

    from tony.arrays import bf16_product

    product = jax.jit(lambda a, b: bf16_product(a, b, (((1,), (0,)), ((), ()))))
    a = jnp.ones((size, size), jnp.bfloat16)
    jax.block_until_ready(product(a, a))
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def peak_memory_bytes(children: bool = True) -> int:
    """Largest resident size of this process so far, or of one of its finished `children`."""
    counted = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN) if children else (resource.RUSAGE_SELF,)
    peak = max(resource.getrusage(who).ru_maxrss for who in counted)
    return peak if platform.system() == "Darwin" else peak * 1024


def describe() -> dict:
    """The machine, for manifests."""
    import psutil

    return {
        "platform": os.environ.get("JAX_PLATFORMS", "cpu"),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "processor": platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
    }
