"""What the machine can do."""

import os
import subprocess
import sys

import pytest

from tony.hardware import HUGE_PAGES

SCRIPT = """
import os, platform
from tony.hardware import use_huge_pages
use_huge_pages()
print(platform.libc_ver()[0], os.environ.get("GLIBC_TUNABLES", ""), os.getpid())
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", f"{HUGE_PAGES}=1"),
        ("glibc.malloc.perturb=0", f"glibc.malloc.perturb=0:{HUGE_PAGES}=1"),
        (f"{HUGE_PAGES}=0", f"{HUGE_PAGES}=0"),
    ],
)
def test_a_program_starts_anew_on_huge_pages_unless_told_otherwise(given, expected):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "GLIBC_TUNABLES": given},
        stdout=subprocess.PIPE,
        text=True,
    )
    libc, *tunables, pid = process.communicate(timeout=60)[0].split()
    assert tunables == ([expected] if libc == "glibc" or given else [])
    assert int(pid) == process.pid  # signals still find it
