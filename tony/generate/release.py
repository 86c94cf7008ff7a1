"""Where a released model lies; nothing heavy is imported, so that a command can look before it loads."""

from pathlib import Path

from tony.errors import TonyError

# All that a release may hold, of Tony's own models and of imported ones; whatever else lies in its folder is not of it.
FILES = (
    "config.json", "model.safetensors", "tokenizer/vocabulary.json", "tokenizer/text/tokenizer.json",
    "tokenizer/audio/config.json", "tokenizer/audio/weights.safetensors",
    "tokenizer/image/config.json", "tokenizer/image/weights.safetensors",
    "tokenizer/text.json", "tokenizer/tokenizer.json",
)  # fmt: skip


def find_release(directory: Path | str) -> Path:
    """The release folder of a run's folder, or the folder itself if it is one; TonyError if there is no model."""
    directory = Path(directory)
    places = (directory / "model", directory) if is_run(directory) else (directory, directory / "model")
    for folder in places:
        if (folder / "config.json").exists():
            return folder
    raise TonyError(f"there is no model in {directory}; expected a finished run such as runs/demo: tony run first")


def is_run(directory: Path | str) -> bool:
    """Whether a folder is a run's: it has the manifest that `tony run` writes."""
    return (Path(directory) / "manifest.json").is_file()


def home_of(directory: Path | str) -> Path:
    """The run's folder if the folder is a run's model/, otherwise the folder itself; absolute."""
    directory = Path(directory).resolve()
    return directory.parent if directory.name == "model" and is_run(directory.parent) else directory


def is_imported(release: Path) -> bool:
    """Whether a release folder is of a model with a tokenizer of somebody else's, which `tony import` wrote."""
    return (Path(release) / "tokenizer" / "text.json").is_file()
