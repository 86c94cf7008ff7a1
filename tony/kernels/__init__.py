"""Kernels in C++ for CPUs that multiply bfloat16 (AMX, AVX-512 BF16), where XLA's own programs are slow.

They are compiled by the machine's C++ compiler when they are first wanted, and kept in Tony's cache. Where there is no
compiler or no such CPU, or `TONY_KERNELS=0` is set, `available()` is false and everything goes by XLA; so do programs
that are spread over a mesh.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tony.hardware import CACHE
from tony.parallel.sharding import is_spread

FOLDER = Path(__file__).parent
SOURCES = ("attention.cc", "elementwise.cc")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fno-math-errno")
COMPILERS = ("c++", "g++", "clang++")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
TARGETS = (
    "attention_forward", "attention_backward", "gated_forward", "gated_backward", "rotate_forward", "rotate_backward",
    "logits_loss", "norm_backward",
)  # fmt: skip
ENDLESS = 2**30  # tokens


def available() -> bool:
    """Whether the program that is being traced can use these kernels; they are compiled if they were not yet."""
    return not is_spread() and os.environ.get("TONY_KERNELS") != "0" and _registered()


@cache
def _registered() -> bool:
    if jax.default_backend() != "cpu" or NEEDED - _features():
        return False
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return False
    try:
        return register(build(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[:1]
        warnings.warn(f"{compiler} could not compile Tony's kernels, XLA's slower ones are used: {told}", stacklevel=2)
        return False


def _features() -> set[str]:
    """What the CPU says it can do, on Linux for x86."""
    path = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not path.exists():
        return set()
    line = next((line for line in path.read_text().splitlines() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def build(compiler: str, *more: str) -> Path:
    """The shared library of `SOURCES`, compiled with `more` flags unless it has been for this CPU.

    Raises OSError or subprocess.SubprocessError.
    """
    texts = [(FOLDER / name).read_text() for name in ("common.h", *SOURCES)]
    told = (texts, jax.__version__, FLAGS, more, sorted(_features()))
    path = CACHE / "kernels" / f"{hashlib.sha256(repr(told).encode()).hexdigest()[:20]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            sources = [str(FOLDER / name) for name in SOURCES]
            command = [compiler, *FLAGS, *more, f"-I{jax.ffi.include_dir()}", *sources, "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            made.replace(path)
    return path


def register(path: Path, suffix: str = "") -> bool:
    """Tell XLA of a library's kernels, their names ending in `suffix`; false if the system keeps tiles from us."""
    library = ctypes.CDLL(str(path))
    library.tony_permitted.restype = ctypes.c_bool
    if not library.tony_permitted():
        return False
    for name in TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, f"tony_{name}"))
        jax.ffi.register_ffi_target(f"tony_{name}{suffix}", handler, platform="cpu")
    return True


def _call(name: str, *shapes: tuple, **how):
    """The kernel of a name, for results of (shape, type)."""
    results = tuple(jax.ShapeDtypeStruct(*shape) for shape in shapes)
    return jax.ffi.ffi_call(f"tony_{name}", results if len(results) > 1 else results[0], **how)


# ----------------------------------------------------------------------------------------------------- attention


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def attention(q, k, v, segments, past: int = ENDLESS, future: int = 0, suffix: str = "") -> jax.Array:
    """Attention within segments: q [..., l, h, d], k and v [..., l, g, d], segments int32 [..., l] -> [..., l, h, d].

    A token sees those of its segment at most `past` tokens before and `future` after it; h is a multiple of g. Arrays
    are bfloat16, q already divided by the square root of d; sums are float32. `suffix` is that of `register`.
    """
    return _attention(q, k, v, segments, past, future, suffix)[0]


def _attention(q, k, v, segments, past, future, suffix):
    shapes = (q.shape, q.dtype), (q.shape[:-1], jnp.float32)
    call = _call(f"attention_forward{suffix}", *shapes, vmap_method="broadcast_all")
    out, log_total = call(q, k, v, segments, past=np.int64(past), future=np.int64(future))
    return out, (q, k, v, segments, out, log_total)


def _attention_backward(past, future, suffix, residuals, gradient):
    shapes = ((x.shape, x.dtype) for x in residuals[:3])
    call = _call(f"attention_backward{suffix}", *shapes, vmap_method="broadcast_all")
    return *call(*residuals, gradient, past=np.int64(past), future=np.int64(future)), None


attention.defvjp(_attention, _attention_backward)


def windowed_attention(q, k, v, segments, window: int | None, causal: bool = True) -> jax.Array:
    """`attention` of float32 arrays, which are rounded, to a float32 one: a token sees those less than `window` tokens
    away, or all if that is 0 or None, and those ahead unless `causal`."""
    past = window - 1 if window else ENDLESS
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    return attention(q, k, v, segments, past, 0 if causal else past).astype(jnp.float32)


# --------------------------------------------------------------------------------------------------- elementwise


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up of two float32 arrays of one shape, rounded to bfloat16; so are the gradients (Shazeer 2020)."""
    return _gated(gate, up)[0]


def _gated(gate, up):
    call = _call("gated_forward", (gate.shape, jnp.bfloat16), vmap_method="broadcast_all")
    return call(gate, up), (gate, up)


def _gated_backward(residuals, gradient):
    shape = residuals[0].shape
    call = _call("gated_backward", (shape, jnp.bfloat16), (shape, jnp.bfloat16), vmap_method="broadcast_all")
    return tuple(x.astype(jnp.float32) for x in call(*residuals, gradient.astype(jnp.float32)))


gated.defvjp(_gated, _gated_backward)


@jax.custom_vjp
def rotated(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """float32 x [..., l, h, d] turned as `tony.arrays.rotate` does by angles [..., l, 1, d], rounded to bfloat16."""
    return _rotated(x, cosine, sine)[0]


def _rotated(x, cosine, sine):
    call = _call("rotate_forward", (x.shape, jnp.bfloat16), vmap_method="broadcast_all")
    return call(x, cosine, sine), (cosine, sine)


def _rotated_backward(residuals, gradient):
    call = _call("rotate_backward", (gradient.shape, jnp.bfloat16), vmap_method="broadcast_all")
    return call(gradient, *residuals).astype(jnp.float32), None, None


rotated.defvjp(_rotated, _rotated_backward)


def logits_loss(logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float) -> tuple:
    """(gradient [n, v] in bfloat16, nll [n], log Z [n]) of float32 logits [n, v], with targets and weights [n].

    The gradient is that of the sum of weights * (nll + z_loss * log Z ** 2).
    """
    n = logits.shape[0]
    call = _call(
        "logits_loss", (logits.shape, jnp.bfloat16), ((n,), jnp.float32), ((n,), jnp.float32), vmap_method="sequential"
    )
    return call(logits, targets, weights, z_loss=np.float32(z_loss))


def norm_gradients(x: jax.Array, scale: jax.Array, gain: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of x [..., d] and gain [d] of x * scale [..., 1] * gain, scale being 1 / the root mean square of x."""
    parts = min(64, max(1, x.size // gain.size))
    shapes = (x.shape, jnp.float32), ((parts, gain.size), jnp.float32)
    to_x, to_gain = _call("norm_backward", *shapes, vmap_method="sequential")(x, scale, gain, gradient)
    return to_x, to_gain.sum(0)
