"""Errors that are the user's to mend, and the check for optional packages."""

import importlib
from types import ModuleType


class TonyError(Exception):
    """Something the user can put right; the message says what was given, what was expected and what to do."""


def first_line(error: BaseException | str, most: int = 200) -> str:
    """The first line of what an error says, to be put into a sentence; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise TonyError(
            f"this needs the package {module}, which is not installed: pip install -e '.[{extra}]' in Tony's folder"
        ) from None
