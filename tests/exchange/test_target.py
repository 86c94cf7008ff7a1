"""Where imports and exports may write; what lies there is not lost."""

import json
import os

import pytest

from tests.exchange.test_export import make
from tests.exchange.test_import import folder
from tony.errors import TonyError
from tony.exchange import exporting, importing
from tony.exchange.exporting import export_model
from tony.exchange.importing import import_model
from tony.exchange.target import check_target
from tony.generate.release import find_release, home_of


@pytest.fixture
def run(tmp_path):
    """A run of Tony's with a model."""
    make(tmp_path / "run" / "model")
    (tmp_path / "run" / "manifest.json").write_text("{}")
    return tmp_path / "run"


def contents(place) -> dict:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def unread(monkeypatch):
    """Weights must not be read."""

    def read(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("tony.model.files.load_model", read)
    monkeypatch.setattr(importing, "_read_folder", read)
    monkeypatch.setattr(importing, "_read_gguf", read)


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_written_into_a_run_or_into_what_is_read(run, tmp_path, unread, overwrite):
    hf = folder("llama", tmp_path / "hf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "link").symlink_to(run / "model")
    before = contents(tmp_path)
    for out in (
        run,
        run / "model",
        run / "model" / "new",
        run / "a.gguf",
        tmp_path / "link",
        tmp_path / "link" / "new",
    ):
        for source in (run, run / "model"):
            with pytest.raises(TonyError, match=r"is what is read|, which is read|is a run|lies in the run"):
                export_model(source, out, overwrite=overwrite)
        with pytest.raises(TonyError, match=r"is a run|lies in the run"):
            import_model(str(hf), out, overwrite=overwrite)
    for source, out in ((hf, hf), (hf, hf / "new"), (tmp_path / "x.gguf", tmp_path / "x.gguf")):
        with pytest.raises(TonyError, match=r"is what is read|lies in .*, which is read"):
            import_model(str(source), out, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_what_is_there_is_written_over_only_if_asked(run, tmp_path, unread):
    hf, full = folder("llama", tmp_path / "hf"), tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    (tmp_path / "old.gguf").write_text("old")
    before = contents(tmp_path)
    for out, said in ((full, "full is a folder that is not empty; give another name, or --overwrite"),
                      (tmp_path / "old.gguf", r"old.gguf exists; give another name, or --overwrite")):  # fmt: skip
        with pytest.raises(TonyError, match=said):
            export_model(run, out)
    with pytest.raises(TonyError, match="not empty"):
        import_model(str(hf), full)
    assert contents(tmp_path) == before


def test_overwriting_leaves_nothing_of_another_models(run, tmp_path):
    hf, out = folder("llama", tmp_path / "hf"), tmp_path / "out"
    export_model(run, out)
    assert (out / "chat_template.jinja").exists()
    (hf / "chat_template.jinja").unlink(missing_ok=True)
    facts = json.loads((hf / "tokenizer_config.json").read_text())
    facts.pop("chat_template", None)
    (hf / "tokenizer_config.json").write_text(json.dumps(facts))
    import_model(str(hf), tmp_path / "imported")
    export_model(tmp_path / "imported", out, overwrite=True)
    assert not (out / "chat_template.jinja").exists()
    import_model(str(out), tmp_path / "again")
    import_model(str(out), tmp_path / "again", overwrite=True)


def test_any_case_of_gguf_is_a_file(run, tmp_path):
    assert export_model(run, tmp_path / "e.GGUF")["path"] == str(tmp_path / "e.GGUF")
    assert (tmp_path / "e.GGUF").read_bytes()[:4] == b"GGUF"
    export_model(run, tmp_path / "e.GGUF", "q8_0", overwrite=True)
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(TonyError, match="is a folder; expected the name of a file"):
        export_model(run, tmp_path / "d.gguf", overwrite=True)


def test_what_cannot_be_written_is_named(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "file" / "a.gguf", tmp_path / ("n" * 300)):
        with pytest.raises(TonyError, match=f"^{out} can't be written"):
            export_model(run, out)
    (tmp_path / "a.gguf.part").mkdir()
    with pytest.raises(TonyError, match=r"a\.gguf can't be written \(Is a directory\)"):
        export_model(run, tmp_path / "a.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(TonyError, match="gives no permission to"):
            check_target(tmp_path / "new", None, False)

    def refused(*_):
        raise PermissionError(13, "Permission denied", "elsewhere")

    monkeypatch.setattr(exporting, "write_bytes", refused)
    with pytest.raises(TonyError, match=r"new can't be written \(Permission denied\)"):
        export_model(run, tmp_path / "new")


def test_mistakes_of_an_import_are_told_before_weights_are_read(tmp_path, unread):
    hf = str(folder("llama", tmp_path / "hf"))
    for name, written, said in (("broken", b"{% if %}", "not valid Jinja"), ("empty", b" ", "is empty"),
                                ("bytes", b"\xff", "is not text in UTF-8")):  # fmt: skip
        (tmp_path / name).write_bytes(written)
        with pytest.raises(TonyError, match=f"--chat-template {tmp_path / name}.*{said}"):
            import_model(hf, tmp_path / "out", tmp_path / name)
    with pytest.raises(FileNotFoundError):
        import_model(hf, tmp_path / "out", tmp_path / "missing")
    with pytest.raises(TonyError, match=r"--revision v1 is of a model on the Hub; .*hf is here"):
        import_model(hf, tmp_path / "out", revision="v1")


def test_tonys_own_model_is_not_imported(run, tmp_path):
    for source in (run, run / "model"):
        with pytest.raises(TonyError, match=f"in Tony's own form already; serve it: tony serve {source}"):
            import_model(str(source), tmp_path / "out")


def test_a_model_folder_is_a_runs_only_if_the_run_is_there(run, tmp_path):
    assert home_of(run / "model") == home_of(run) == run
    (tmp_path / "models" / "model").mkdir(parents=True)
    assert home_of(tmp_path / "models" / "model") == tmp_path / "models" / "model"


def test_a_model_is_found_in_its_run_and_before_another_that_lies_in_it(run, tmp_path):
    assert find_release(run) == find_release(run / "model") == run / "model"
    for place in (tmp_path / "imported", tmp_path / "imported" / "model"):
        place.mkdir()
        (place / "config.json").write_text("{}")
    assert find_release(tmp_path / "imported") == tmp_path / "imported"
