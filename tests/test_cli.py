"""The command line as a user meets it: what it prints, where, and with which exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tony.stages
from tests.exchange.test_import import folder
from tony.cli import main
from tony.run import Stage

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def told(capsys):
    """Run a command that must fail; its one line of error."""

    def told(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert stopped.value.code == 2 and out == ""
        assert len(lines) == 1 and err.endswith(lines[0] + "\n")  # after it comes nothing
        return lines[0]

    return told


def test_help_is_there_before_anything_heavy():
    script = (
        "import sys, tony.cli\n"
        "try: tony.cli.main(['--help'])\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "light = {'tony', 'tony.cli', 'tony.errors'}\n"
        "heavy = {'jax', 'numpy', 'rich', 'tokenizers', 'fastapi', 'PIL', 'matplotlib', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), {n for n in sys.modules if n.split('.')[0] == 'tony'} == light)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[] True"
    for command in ("run", "eval", "card", "serve", "chat", "info"):
        assert f"\n    {command} " in done.stdout


def test_the_module_and_its_version():
    done = subprocess.run([sys.executable, "-m", "tony", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"tony {tony.__version__}\n"


def test_without_a_command_the_help_is_shown(capsys):
    main([])
    assert capsys.readouterr().out.startswith("usage: tony")


def test_an_unknown_command_or_option_is_a_usage_error(capsys):
    for arguments, said in (
        (["rnu", "x.toml"], "there is no command rnu; did you mean run?"),
        (["frobnicate"], "there is no command frobnicate; choose from run, plan, eval, card, serve, chat, import,"),
        (["run"], "the following arguments are required: recipe"),
        (["serve", "x", "--port", "many"], "--port: 'many': expected a whole number from 0 to 65535"),
        (["serve", "x", "--port", "99999"], "'99999': expected"),
        (["serve", "x", "--port", "-1"], "'-1': expected"),
        (["serve", "x", "--port", "80000", "--detach"], "'80000': expected"),
        (["serve", "x", "--slots", "0"], "--slots: '0': expected a whole number from 1 to 1024"),
        (["serve", "x", "--slots", "-2", "--detach"], "--slots: '-2': expected"),
        (["chat", "x", "--max-tokens", "0"], "--max-tokens: '0': expected a whole number from 1 on"),
        (["chat", "x", "--max-tokens", "-1"], "'-1': expected"),
        (["chat", "x", "--temperature", "-1"], "--temperature: '-1': expected a number from 0 to 2"),
        (["chat", "x", "--temperature", "nan"], "'nan': expected"),
        (["chat", "x", "--temperature", "5"], "'5': expected"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("usage: tony") and said in err


def test_errors_of_recipes_are_one_line(told, home):
    (home / "demo.toml").write_text("[tune]\nstpes = 5\n")
    assert "there is no recipe dmeo.toml; did you mean demo.toml?" in told("run", "dmeo.toml")
    assert "unknown key tune.stpes = 5; did you mean tune.steps?" in told("run", "demo.toml")
    (home / "demo.toml").write_text("size = 1")
    assert "--set 'seed' has no value" in told("run", "demo.toml", "--set", "seed")
    assert "can't be read (Is a directory)" in told("run", home)
    assert not (home / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "runs/none", "--port", "0"], "there is no model in runs/none; expected a finished run"),
        (["serve", "runs/none", "--port", "0", "--host", "0.0.0.0"], "give --api-key"),
        (["chat", "runs/none"], "there is no model in runs/none"),
        (["card", "runs/none"], "runs/none is not a run"),
        (["eval", "runs/none"], "runs/none"),
        (["eval", "runs/none", "--only", "image_digit"], "did you mean image_digits?"),
    ],
)
def test_commands_on_a_run_that_is_not_there(told, arguments, message, monkeypatch):
    monkeypatch.delenv("TONY_API_KEY", raising=False)
    assert message in told(*arguments)


def test_files_that_are_not_there_or_in_the_way_are_one_line(told, home):
    (home / "file").write_text("")
    assert told("run", RECIPES / "demo.toml", "--out", "file/x") == "error: file/x/demo: Not a directory"
    source = folder("llama", home / "source")
    assert "file/model can't be written: " in told("import", source, "file/model")
    assert "missing.jinja: No such file" in told("import", source, "model", "--chat-template", "missing.jinja")


def test_info_is_json_for_programs_and_lines_for_people(capsys, home, monkeypatch):
    monkeypatch.setattr("tony.hardware.CACHE", home / "cache")
    main(["info", "--json"])
    facts = json.loads(capsys.readouterr().out)
    import jax

    assert facts["tony"].startswith(tony.__version__)
    assert facts["packages"]["jax"] == jax.__version__
    assert facts["machine"]["memory_bytes"] > 2**28
    assert facts["peak_flops"] > 1e8
    monkeypatch.setattr("tony.info._version", lambda name: "0.19.0" if name == "gguf" else None)
    main(["info"])
    out = capsys.readouterr().out
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert "{" not in out
    assert lines["extra exchange"].startswith("gguf 0.19.0, jinja2 not installed (pip install -e '.[exchange]'), ")
    assert facts["extras"]["exchange"].keys() == {"gguf", "jinja2", "huggingface-hub"}
    assert "dev" not in facts["extras"] and "jax" not in facts["extras"]["tpu"]
    assert lines["machine"].startswith(facts["machine"]["processor"])
    assert lines["peak_flops"] == f"{facts['peak_flops'] / 1e9:.0f} GFLOP/s (bfloat16)"  # measured once, remembered


@pytest.fixture
def lived(monkeypatch):
    """Recipes with one stage that notes what it was given; monkeypatched in place of the real ones."""
    met = []

    def stage(context):
        met.append(context.recipe)
        (context.directory / "summary.json").write_text(json.dumps({"results": [RESULT]}))
        return {}

    monkeypatch.setattr(tony.stages, "STAGES", [Stage("only", stage, ("tune", "data.corpus", "data.sources"), ())])
    return met


RESULT = {"name": "sums", "value": 0.5, "stderr": 0.125, "n": 16}


def test_run_takes_overrides_and_prints_its_summary(lived, home, capsys):
    (home / "mine.toml").write_text("size = 1\n[data.sources.own]\npath = 'own.jsonl'\n")
    (home / "own.jsonl").write_text('{"text": "a"}\n')
    command = ["run", "mine.toml", "--set", "tune.steps=3", "--set", "name=other", "--out", "lives"]
    main([*command, "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert summary["results"] == [RESULT] and summary["wall_seconds"] >= 0
    assert lived[0].tune.steps == 3
    assert (home / "lives" / "other" / "manifest.json").exists()
    main(command)
    out, err = capsys.readouterr()
    assert out == "" and "unchanged" in err and "tony serve lives/other" in err
    assert "sums" in err and "0.500" in err and "0.125" in err
    assert len(lived) == 1
    (home / "own.jsonl").write_text('{"text": "b"}\n')  # the user's data changed
    main([*command, "--json"])
    assert len(lived) == 2


def test_an_interrupted_run_says_how_to_go_on(lived, home, capsys, monkeypatch):
    (home / "mine.toml").write_text("size = 1")

    def interrupted(context):
        raise KeyboardInterrupt

    monkeypatch.setattr(tony.stages, "STAGES", [Stage("only", interrupted, (), ())])
    with pytest.raises(SystemExit) as stopped:
        main(["run", "mine.toml"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.endswith("stopped; the same command goes on from here\n")


def test_only_an_interrupted_run_goes_on(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tony.serve.terminal.chat", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "runs/demo"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_the_processor_is_named_where_the_system_tells_it(monkeypatch):
    from tony import info

    monkeypatch.setattr(info.Path, "read_text", lambda self: "processor : 0\nmodel name\t: Some CPU @ 2: fast\n")
    assert info.machine()["processor"] == "Some CPU @ 2: fast"

    def refused(self):
        raise OSError

    monkeypatch.setattr(info.Path, "read_text", refused)
    assert info.machine()["processor"]
