"""`tony info`: what is installed and what this machine can do."""

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

OPTIONAL = re.compile(r"([\w.-]+)[^;]*;.*\bextra == ['\"]([\w-]+)['\"]")  # a requirement of an extra
OWN = ("dev",)  # extras for those who work on Tony itself


def facts() -> dict:
    """Everything, for programs; the peak is measured once and remembered."""
    from tony import kernels
    from tony.hardware import peak_flops
    from tony.run import _packages, code_version

    return {
        "tony": code_version(), "machine": machine(), "peak_flops": peak_flops(), "kernels": kernels.available(),
        "packages": _packages(), "extras": extras(),
    }  # fmt: skip


def lines(told: dict) -> list[str]:
    """`facts` for people."""
    of = told["machine"]
    made = [
        f"tony: {told['tony']}",
        f"machine: {of['processor']}, {of['cores']} cores, {of['memory_bytes'] / 2**30:.1f} GiB of memory, "
        f"{of['system']}, JAX on {of['platform']}",
        f"peak_flops: {told['peak_flops'] / 1e9:.0f} GFLOP/s (bfloat16)",
        f"kernels: {'in C++' if told['kernels'] else 'those of XLA'}",
        f"packages: {', '.join(f'{name} {number}' for name, number in told['packages'].items())}",
    ]
    for extra, packages in told["extras"].items():
        absent = f"not installed (pip install -e '.[{extra}]')"
        made.append(f"extra {extra}: " + ", ".join(f"{name} {number or absent}" for name, number in packages.items()))
    return made


def extras() -> dict[str, dict[str, str | None]]:
    """Of each extra its packages with their versions, None where one is not installed; {} if Tony itself is not."""
    try:
        found = [OPTIONAL.match(line) for line in requires("tony-lm") or []]
    except PackageNotFoundError:
        return {}
    made: dict[str, dict[str, str | None]] = {}
    for match in filter(None, found):
        name, extra = match.groups()
        if extra not in OWN:
            made.setdefault(extra, {})[name] = _version(name)
    # `jax[tpu]` is of two extras, and installed with any of them or none.
    return {extra: {name: made[extra][name] for name in made[extra] if name != "jax"} for extra in made}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine() -> dict:
    """The machine with its processor's own name, where the system tells it."""
    from tony.hardware import describe

    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        rows = []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return {**describe(), "processor": names[0]} if names else describe()
