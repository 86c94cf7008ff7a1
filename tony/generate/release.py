"""Where a released model lies; nothing heavy is imported, so that a command can look before it loads."""

from pathlib import Path

from tony.errors import TonyError


def find_release(directory: Path | str) -> Path:
    """The release folder of a run's folder, or the folder itself if it is one; TonyError if there is no model."""
    directory = Path(directory)
    for folder in (directory / "model", directory):
        if (folder / "config.json").exists():
            return folder
    raise TonyError(f"there is no model in {directory}; expected a finished run such as runs/demo: tony run first")


def is_imported(release: Path) -> bool:
    """Whether a release folder is of a model with a tokenizer of somebody else's, which `tony import` wrote."""
    return (Path(release) / "tokenizer" / "text.json").is_file()
