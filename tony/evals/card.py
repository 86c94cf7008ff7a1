"""The card of a run: one self-contained page about what the model is, was made from, can do and gets wrong.

`render` reads nothing outside the run's folder. A part whose files are missing says so in a sentence. Everything that
comes from a file is escaped, and only files inside the folder are put into the page.
"""

import base64
import io
import json
import math
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tony.energy import ESTIMATED, KILOGRAMS_CO2E_PER_KWH
from tony.errors import TonyError
from tony.evals import charts
from tony.evals.catalogue import MEASURES, Measure, reached, target
from tony.files import mapping, read_json, read_jsonl, write_bytes
from tony.generate.release import is_run
from tony.plan.arithmetic import tonnes_co2e

SHOWN_RIGHT, SHOWN_WRONG = 3, 3  # samples of each evaluation on the page: the first right and the first wrong ones
PAIRS = 8  # before/after pairs of a codec
WAVE_BARS = 42
MODALITIES = ("text", "audio", "image", "think")  # names of the language model's losses
NOT_LOSSES = ("step", "skipped", "gradient_norm")
GIVEN = ("text", "speech", "picture", "video", "speech + picture")
MADE = ("text", "speech", "picture")
LINE_CLASSES = {"text": "c-text", "audio": "c-audio", "speech": "c-audio", "image": "c-image", "think": "c-video"}
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".flac": "audio/flac",
         ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}  # fmt: skip


def render(run_directory: Path | str) -> Path:
    """Write `card.html` into a run's folder and return its path."""
    directory = Path(run_directory)
    if not is_run(directory):
        raise TonyError(
            f"{directory} is not a run (it has no manifest.json); expected a folder that `tony run` made; see `ls runs`"
        )
    page = _Run(directory)
    measured = [
        ("any-to-any", "Any to any", _matrix(page)),
        ("results", "Results", _results(page)),
        ("samples", "Samples", _samples(page)),
        ("codecs", "Codecs", _codecs(page)),
    ]
    made = [
        ("model", "Model", _model(page)),
        ("training", "Training", _training(page)),
        ("data", "Data", _data(page)),
        ("cost", "Time and energy", _cost(page)),
        ("use", "Use and limits", _limits(page)),
        ("reproduce", "Reproduce", _reproduce(page)),
    ]
    # What a tuned model of others' can do is for its user to measure.
    sections = [section for section in made if section[0] not in ("data", "use")] if page.base else [*measured, *made]
    nav = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
    body = _hero(page) + f'<nav aria-label="Sections">{nav}</nav>'
    body += "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in sections)
    body += f"<footer>{_footer(page)}</footer>"
    template = Template(Path(__file__).with_name("card.html").read_text(encoding="utf-8"))
    html = template.substitute(title=escape(f"{page.title} · model card"), body=body)
    path = directory / "card.html"
    write_bytes(path, html.encode())
    return path


class _Run:
    """The files of a run, read once; whatever is missing is empty."""

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        self.manifest = mapping(read_json(directory / "manifest.json"))
        self.summary = mapping(read_json(directory / "summary.json"))
        self.context = mapping(read_json(directory / "eval" / "context.json"))
        self.config = mapping(read_json(directory / "model" / "config.json"))
        self.recipe = mapping(self.manifest.get("recipe") or self.manifest.get("config"))
        self.name = str(self.recipe.get("name") or directory.resolve().name)
        self.base = str(mapping(self.recipe.get("model")).get("base") or "")
        self.title = str(mapping(self.recipe.get("card")).get("title") or self.name)
        rows = [row for row in _mappings(self.summary.get("results")) if row.get("name")]
        self.results = {
            str(row["name"]): {"higher_is_better": True, **row} for row in rows if _number(row.get("value")) is not None
        }
        values = {name: row["value"] for name, row in self.results.items()}
        self.targets = {name: target(self.name, name, values) for name in self.results}
        self.records = {name: read_jsonl(directory / "eval" / f"{name}.jsonl") for name in self.results}
        stages = mapping(self.manifest.get("stages"))
        self.stages = {str(name): mapping(facts) for name, facts in stages.items()}
        self.parameters = _parameters(directory / "model" / "model.safetensors")

    def file(self, name: str) -> Path | None:
        """A file of the run by its relative name; None if it is missing, or outside the folder."""
        path = (self.directory / name).resolve()
        return path if path.is_relative_to(self.directory) and path.is_file() else None


def _mappings(value: Any) -> list[dict]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _parameters(path: Path) -> int | None:
    """Number of weights, from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return None


# ------------------------------------------------------------------------------------------------------------ sections


def _hero(run: _Run) -> str:
    tiles = []
    if run.parameters:
        tiles.append((charts.count(run.parameters), "parameters, one network"))
    if _number(run.summary.get("wall_seconds")):
        tiles.append(
            (_duration(run.summary["wall_seconds"]), "of training" if run.base else "from nothing to this page")
        )
    cores = _number(mapping(run.summary.get("machine")).get("cores"))
    if cores:
        tiles.append(
            (f"{cores:.0f}", "processor cores, no accelerator" if not _accelerator(run) else "processor cores")
        )
    if _number(run.summary.get("peak_memory_bytes")):
        tiles.append((f"{run.summary['peak_memory_bytes'] / 2**30:.1f} GiB", "most memory used"))
    goals = {name: goal for name, goal in run.targets.items() if goal is not None}
    if goals:
        met = sum(reached(run.results[name], goal) for name, goal in goals.items())
        tiles.append((f"{met} of {len(goals)}", "targets reached"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in tiles)
    authors = mapping(run.recipe.get("card")).get("authors")
    lede = (
        "One autoregressive network over one stream of tokens: text, speech, pictures and video in; text, speech and "
        "pictures out. Every number below was measured by the program that made the model, on data that it was never "
        "trained on."
    )
    if run.base:
        lede = f"A language model, {escape(run.base)}, that was trained further; what that took, and how it went."
    by = f" · {escape(', '.join(map(str, authors)) if isinstance(authors, list) else str(authors))}" if authors else ""
    return f'<p class="kicker">Model card{by}</p><h1>{escape(run.title)}</h1><p class="lede">{lede}</p>' + (
        f'<div class="tiles">{cells}</div>' if cells else ""
    )


def _accelerator(run: _Run) -> bool:
    return str(mapping(run.summary.get("machine")).get("platform", "cpu")) != "cpu"


def _matrix(run: _Run) -> str:
    if not run.results:
        return _missing("No evaluation has been run, so there is nothing to show yet; `tony eval` measures the model.")
    head = '<div class="head"></div>' + "".join(f'<div class="head">{name} out</div>' for name in MADE)
    cells = [head]
    for given in GIVEN:
        cells.append(f'<div class="row">{given.capitalize()} in</div>')
        for made in MADE:
            names = [n for n, m in MEASURES.items() if (m.given, m.made) == (given, made) and n in run.results]
            if not names:
                cells.append('<div class="cell empty">not measured</div>')
                continue
            inner = "".join(
                f"<div{' class=also' if position else ''}>{_cell(run, name)}</div>"
                for position, name in enumerate(names)
            )
            cells.append(f'<div class="cell"><div class="only">{given.capitalize()} → {made}</div>{inner}</div>')
    return (
        '<p class="lead">What goes in, by row; what comes out, by column. Every way through the model goes through the '
        "same weights. Shown is the first sample that was right; all kinds of failure are further down.</p>"
        f'<div class="matrix">{"".join(cells)}</div>'
    )


def _cell(run: _Run, name: str) -> str:
    result, measure = run.results[name], MEASURES[name]
    value = f"{100 * result['value']:.1f} %"
    unit = "word errors" if measure.unit == "word error rate" else "right"
    records = run.records[name]
    sample = next((record for record in records if record.get("correct")), records[0] if records else None)
    return (
        f'<div class="score"><b>{value}</b><span class="small">± {100 * _error(result):.1f} {unit}</span></div>'
        f'<p class="what">{escape(measure.title)}: {escape(measure.what)}; n = {_n(result)}</p>'
        + (_turn(run, sample) if sample else "")
    )


def _results(run: _Run) -> str:
    if not run.results:
        return _missing("No results: summary.json is missing or empty.")
    rows = []
    for name, result in run.results.items():
        measure = MEASURES.get(name) or Measure(name, "", unit="")
        goal = run.targets[name]
        controls = {key: value for key, value in mapping(result.get("controls")).items() if _number(value) is not None}
        if goal is None:
            verdict = '<span class="pill flat">reported</span>'
        else:
            sign = "≥" if result["higher_is_better"] else "≤"
            state = ("good", "reached") if reached(result, goal) else ("bad", "missed")
            verdict = (
                f'<span class="pill {state[0]}">{state[1]}</span> <span class="small num">{sign} {goal:.2f}</span>'
            )
        shown = " / ".join(f"{controls[key]:.2f}" for key in ("positive", "negative") if key in controls) or "-"
        notes = escape(str(result.get("notes") or ""))
        rows.append(
            f'<tr class="main"><th scope="row">{escape(measure.title)}<code>{escape(name)}</code></th>'
            f'<td class="num"><b>{_value(result["value"])}</b> ± {_value(_error(result))}<br>'
            f'<span class="small">{escape(measure.unit)}</span></td>'
            f'<td class="num" data-label="n">{_n(result)}</td>'
            f'<td class="num" data-label="controls">{shown}</td>'
            f'<td class="wide">{_scale(result, controls, goal)}</td>'
            f"<td>{verdict}</td></tr>"
            f'<tr class="note"><td colspan="6" class="small wide">{escape(measure.what.capitalize())}. {notes}'
            f"{_facts(result)}</td></tr>"
        )
    skipped = _mappings(run.summary.get("skipped"))
    left_out = "".join(
        f"<li><code>{escape(str(entry.get('name')))}</code>: {escape(str(entry.get('reason')))}</li>"
        for entry in skipped
    )
    return (
        '<p class="lead">Value ± one standard error. The controls show that each evaluation can fail: the positive one '
        "judges the reference answers, the negative one deliberately mismatched answers. On the scale, better is "
        "always to the right: ticks are the controls, the band is two standard errors, the triangle is the target.</p>"
        '<div class="scroll"><table class="results"><thead><tr><th>Evaluation</th><th>Value</th><th>n</th>'
        "<th>Controls<br>positive / negative</th><th>Scale</th><th>Target</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<h3>Not measured</h3><ul class="plain">{left_out}</ul>' if left_out else "")
    )


def _scale(result: dict, controls: dict[str, float], goal: float | None) -> str:
    return charts.scale(result["value"], _error(result), controls, goal, reverse=not result["higher_is_better"])


def _facts(result: dict) -> str:
    facts = mapping(result.get("facts"))
    text = "; ".join(
        f"{escape(str(key))} {_value(value)}" for key, value in facts.items() if _number(value) is not None
    )
    return f" <em>{text}.</em>" if text else ""


def _samples(run: _Run) -> str:
    blocks: list[str] = []
    for name, records in run.records.items():
        if name.startswith("codec_") or not records:
            continue
        measure = MEASURES.get(name) or Measure(name, "")
        right = [record for record in records if record.get("correct")]
        wrong = [record for record in records if not record.get("correct")]
        shown = [_sample(run, record) for record in [*wrong[:SHOWN_WRONG], *right[:SHOWN_RIGHT]]]
        blocks.append(
            f"<details{'' if blocks else ' open'}><summary>{escape(measure.title)}"
            f'<span class="small">{len(right)} right, {len(wrong)} wrong</span></summary>'
            f'<div class="samples">{"".join(shown)}</div></details>'
        )
    if not blocks:
        return _missing("No graded samples were kept: eval/*.jsonl is missing.")
    return (
        f'<p class="lead">For each evaluation the first {SHOWN_WRONG} samples that were wrong and the first '
        f"{SHOWN_RIGHT} that were right, in the order they were drawn; nothing is picked by hand. All of them are in "
        f"<code>eval/NAME.jsonl</code>.</p>{''.join(blocks)}"
    )


def _sample(run: _Run, record: dict) -> str:
    right = bool(record.get("correct"))
    judged = "right" if right else "wrong"
    if not right and "errors" in record:
        judged = f"{record['errors']} errors in {record.get('words', '?')} words"
    verdict = f'<span class="pill {"good" if right else "bad"} verdict">{escape(judged)}</span>'
    rows = []
    for key, label in (("expected", "Expected"), ("heard", "Heard by the judge"), ("seen", "Seen by the judge")):
        if record.get(key) is not None:
            rows.append(f'<p class="small">{label}: {escape(str(record[key]))}</p>')
    if record.get("thinking"):
        rows.append(f"<details><summary>Thinking</summary><pre>{escape(str(record['thinking']))}</pre></details>")
    return f'<div class="sample">{_turn(run, record)}{verdict}{"".join(rows)}</div>'


def _turn(run: _Run, record: dict) -> str:
    asks = "".join(_part(run, part) for part in _mappings(record.get("prompt")))
    answers = (
        "".join(_part(run, part) for part in _mappings(record.get("answer"))) or '<span class="said">no answer</span>'
    )
    state = "right" if record.get("correct") else "wrong" if "correct" in record else ""
    return f'<div class="turn {state}"><div class="asks">{asks}</div><div class="answers">{answers}</div></div>'


def _part(run: _Run, part: dict) -> str:
    """One PART of a record (see `tony.evals.bench`) as HTML."""
    kind = part.get("kind")
    if kind == "text":
        return f"<span>{escape(str(part.get('text', '')))}</span>"
    if kind == "image":
        return _image(run, str(part.get("file")))
    if kind == "video":
        frames = "".join(_image(run, str(name), f"frame {i + 1}") for i, name in enumerate(part.get("files") or []))
        return f'<span class="film">{frames}</span>'
    if kind == "audio":
        said = f'<span class="said">“{escape(str(part["text"]))}”</span>' if part.get("text") else ""
        return _sound(run, str(part.get("file")), str(part.get("text") or "")) + said
    return ""


def _image(run: _Run, name: str, alt: str = "picture") -> str:
    data = _data_uri(run, name)
    return f'<img class="pixels" alt="{escape(alt)}" src="{data}">' if data else _missing_part("picture")


def _sound(run: _Run, name: str, label: str = "") -> str:
    path, data = run.file(name), _data_uri(run, name)
    if path is None or not data:
        return _missing_part("sound")
    peaks, seconds = _peaks(path)
    length = f'<span class="length">{seconds:.1f} s</span>' if seconds else ""
    return (
        f'<span class="sound" data-name="{escape(label)}"><audio controls preload="none" src="{data}"></audio>'
        f"{charts.wave(peaks) if peaks else ''}{length}</span>"
    )


def _data_uri(run: _Run, name: str) -> str:
    path = run.file(name)
    if path is None or path.suffix not in TYPES:
        return ""
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _peaks(path: Path) -> tuple[list[float], float]:
    """Loudest sample in each of WAVE_BARS equal parts of a sound, the loudest part being 1, and its seconds."""
    import numpy as np
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32", always_2d=True)
    except (RuntimeError, OSError):
        return [], 0.0
    if not len(samples):
        return [], 0.0
    peaks = np.array([np.abs(part).max() if len(part) else 0.0 for part in np.array_split(samples[:, 0], WAVE_BARS)])
    return [round(float(peak), 3) for peak in peaks / max(float(peaks.max()), 1e-6)], len(samples) / rate


def _missing_part(what: str) -> str:
    return f'<span class="missing small">{what} not in this run’s folder</span>'


def _codecs(run: _Run) -> str:
    sounds = run.records.get("codec_stoi") or run.records.get("codec_pesq") or []
    pictures = run.records.get("codec_ssim") or run.records.get("codec_psnr") or []
    if not sounds and not pictures:
        return _missing("No codec evaluation was run, so there are no before-and-after pairs.")
    blocks = [
        '<p class="lead">The codecs turn sound and pictures into tokens and back; what they lose, the model can '
        "neither hear nor say. Left or first the original, right or second what its tokens give back.</p>"
    ]
    for title, records, wide in (("Pictures", pictures, ""), ("Speech", sounds, " wide")):
        if records:
            pairs = "".join(_pair(run, record) for record in _spread(records, PAIRS))
            blocks.append(f'<h3>{title}</h3><div class="pairs{wide}">{pairs}</div>')
    usage = [record for record in run.records.get("codec_usage", []) if record.get("entries")]
    if usage:
        rows = [
            (str(record.get("codec")), record["used"] / record["entries"],
             f"{record['used']:,} of {record['entries']:,} codes, in {record['tokens']:,} tokens")
            for record in usage
        ]  # fmt: skip
        blocks.append(f"<h3>Codes in use on held-out data</h3>{charts.bars(rows, whole=1.0)}")
    return "".join(blocks)


def _spread(records: list[dict], most: int) -> list[dict]:
    """The first records of each group in turn, `most` in all."""
    groups: dict[str, list[dict]] = {}
    for record in records:
        groups.setdefault(str(record.get("group")), []).append(record)
    longest = max(map(len, groups.values()))
    return [group[i] for i in range(longest) for group in groups.values() if i < len(group)][:most]


def _pair(run: _Run, record: dict) -> str:
    parts = "".join(_part(run, part) for key in ("prompt", "answer") for part in _mappings(record.get(key)))
    score = _number(record.get("score"))
    shown = f", {score:.2f}" if score is not None else ""
    tokens = f", {record['tokens']} tokens" if record.get("tokens") else ""
    return (
        f'<div class="pair"><div class="two">{parts}</div>'
        f'<span class="small">{escape(str(record.get("group", "")))}{escape(tokens)}{shown}</span></div>'
    )


def _model(run: _Run) -> str:
    if not run.config:
        return _missing("The released model is not in this folder (model/config.json is missing).")
    shown = {"parameters": f"{run.parameters:,}"} if run.parameters else {}
    if _number(run.recipe.get("size")):
        shown["size (the dial)"] = str(run.recipe["size"])
    flat: dict[str, Any] = {}
    for key, value in run.config.items():
        flat |= {f"{key} {inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    shown |= {key.replace("_", " "): str(value) for key, value in flat.items() if value is not None}
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in shown.items())
    tokens = _vocabulary(run)
    about = (
        "Text, speech, pictures and video frames are integer tokens of one vocabulary; a conversation is one stream of "
        "them, and the network never knows what a token means. Codecs turn sound and pictures into tokens and back."
    )
    return f'<p>A decoder-only transformer. {"" if run.base else about}</p>{tokens}<dl class="facts">{facts}</dl>'


def _vocabulary(run: _Run) -> str:
    vocabulary = mapping(read_json(run.directory / "model" / "tokenizer" / "vocabulary.json"))
    rows = [
        (kind, float(vocabulary[f"{kind}_size"]), f"{int(vocabulary[f'{kind}_size']):,} tokens")
        for kind in ("text", "image", "audio")
        if _number(vocabulary.get(f"{kind}_size"))
    ]
    return f"<h3>Vocabulary</h3>{charts.bars(rows)}" if rows else ""


def _training(run: _Run) -> str:
    figures = []
    for path in sorted(run.directory.rglob("metrics.jsonl"), key=lambda path: _stage_order(run, path)):
        stage = str(path.parent.relative_to(run.directory)) if path.parent != run.directory else run.name
        curves = loss_curves(read_jsonl(path))
        if curves:
            classes = {name: _line_class(name) for name in curves}
            drawn = charts.lines(curves, classes, "steps", f"Training losses of {stage}")
            figures.append(f"<div><h3>{escape(stage)}</h3>{drawn}</div>")
    if not figures:
        return _missing("No training curves: no metrics.jsonl is in this folder.")
    return (
        '<p class="lead">Losses by stage and modality; the line is a running mean, its raw values stand pale behind '
        f'it. The number in each key is where it ended.</p><div class="charts">{"".join(figures)}</div>'
    )


def _stage_order(run: _Run, path: Path) -> tuple[int, str]:
    stages = list(run.stages) or ["text", "image_codec", "audio_codec", "encode", "pretrain", "tune"]
    part = path.relative_to(run.directory).parts[0]
    return (stages.index(part) if part in stages else len(stages), str(path))


def loss_curves(rows: list[dict], most: int = 6) -> dict[str, list[tuple[float, float]]]:
    """The curves in the rows of a metrics.jsonl: {name: [(step, value), ...]}.

    The losses by modality where there are any; else the loss and its parts. A row that was logged again after a
    resume replaces the one before it.
    """
    series: dict[str, dict[float, float]] = {}
    for row in rows:
        step = _number(row.get("step"))
        for key, value in row.items():
            number = _number(value)
            if step is not None and number is not None and key not in NOT_LOSSES:
                series.setdefault(key, {})[step] = number
    chosen = {key: points for key, points in series.items() if key in MODALITIES} or series
    return {key.replace("_", " "): sorted(points.items()) for key, points in list(chosen.items())[:most]}


def _line_class(name: str) -> str:
    return next((css for word, css in LINE_CLASSES.items() if word in name), "c0")


def _data(run: _Run) -> str:
    rows = _mappings(run.context.get("rows"))
    notice = str(run.context.get("notice") or "")
    if not rows and not notice:
        return _missing("The data was not described (eval/context.json is missing); `tony eval` writes it.")
    body = "".join(
        f"<tr><th scope=row>{escape(str(row.get('kind')))}</th><td>{escape(str(row.get('use')))}</td>"
        f'<td class="num">{_thousands(row.get("count"))}</td><td>{_detail(row)}</td></tr>'
        for row in rows
    )
    table = (
        '<div class="scroll"><table><thead><tr><th>Material</th><th>Used to</th><th>Items</th><th>Which</th></tr>'
        "</thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
    return (
        "<p>Training and test share no writer, no test voice, no sentence, no picture and no problem: the split is "
        "made on these, never on random rows. Scenes, videos, sums and small logic are generated, and held out by a "
        f"hash of what they say.</p>{table if body else ''}"
        + (f"<details><summary>Sources and licences</summary><pre>{escape(notice)}</pre></details>" if notice else "")
    )


def _detail(row: dict) -> str:
    counted = [f"{_thousands(row[key])} {key}" for key in ("voices", "sentences") if _number(row.get(key))]
    return escape("; ".join([*counted, str(row.get("note") or "")]).strip("; "))


def _cost(run: _Run) -> str:
    durations: dict[str, float] = {}
    for name, facts in run.stages.items():
        seconds = _number(facts.get("seconds") or facts.get("wall_seconds") or facts.get("duration"))
        if seconds:
            durations[name] = seconds
    wall = _number(run.summary.get("wall_seconds")) or sum(durations.values())
    if not wall:
        return _missing("No times were recorded.")
    machine = mapping(run.summary.get("machine"))
    cores = _number(machine.get("cores")) or 1
    kwh = _number(run.summary.get("kwh")) or 0.0
    source = str(run.summary.get("energy") or ESTIMATED)
    listing = [("wall time", _duration(wall))]
    if machine.get("processor"):
        listing.append(("machine", f"{machine['processor']}, {cores:.0f} cores"))
    if _number(run.summary.get("peak_memory_bytes")):
        listing.append(("peak memory", f"{run.summary['peak_memory_bytes'] / 2**30:.2f} GiB"))
    listing.append((f"energy ({source})", f"about {_energy(1000 * kwh)}"))
    listing.append(
        ("carbon dioxide (estimated)", f"about {1e6 * tonnes_co2e(kwh / 1000, KILOGRAMS_CO2E_PER_KWH):.2g} g")
    )
    if _number(run.summary.get("training_flops")):
        operations = f"{run.summary['training_flops']:.3g} floating-point operations"
        listing.append(("training of the network", f"{operations} (PaLM's formula)"))
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in listing)
    rows = [(name, seconds, _duration(seconds)) for name, seconds in durations.items()]
    return (
        f'<dl class="facts">{listed}</dl>'
        f'<p class="small">Energy is {escape(source)}, from {escape(str(run.summary.get("energy_from") or "time"))}, '
        f"without cooling of the house; carbon dioxide is an estimate at {KILOGRAMS_CO2E_PER_KWH} kg a kWh, as of a "
        "mixed grid.</p>" + (f"<h3>Stages</h3>{charts.bars(rows)}" if rows else "")
    )


def _limits(run: _Run) -> str:
    weak = sorted(
        (
            (MEASURES[name].title.lower(), run.results[name])
            for name in run.results
            if name in MEASURES and MEASURES[name].given
        ),
        key=lambda entry: entry[1]["value"] if entry[1]["higher_is_better"] else 1 - entry[1]["value"],
    )[:2]
    measured = "; ".join(f"{title} ({_value(result['value'])})" for title, result in weak)
    missed = [name for name, goal in run.targets.items() if goal is not None and not reached(run.results[name], goal)]
    items = [
        "<b>Meant for</b> learning, research and tests: a complete omni-modal model, small enough to be made and taken "
        "apart on one computer. Not for decisions about people, and not as a source of facts.",
        "<b>Small world.</b> It knows the kinds of sentences, scenes and problems in its training data and hardly "
        "anything else. Asked about other things it answers fluently and wrongly.",
        "<b>English only</b>, from a closed vocabulary when spoken; pictures of 32 or 64 pixels; films of a few "
        "frames.",
        "<b>Voices.</b> It speaks only in the registered synthetic voices it was given. It was not built to recognise "
        "who is speaking, and it cannot imitate a voice that it hears.",
        "<b>Safety.</b> It has had no safety training; there is no refusal behaviour to rely on.",
        "<b>Judges err too.</b> Speech is judged by a recogniser and drawings by a classifier. Their own errors are in "
        "the positive controls.",
    ]
    if measured:
        items.insert(2, f"<b>Weakest</b> of what was measured here: {escape(measured)}.")
    if missed:
        items.insert(2, f"<b>Targets missed:</b> {escape(', '.join(missed))}.")
    return f'<ul class="plain">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def _reproduce(run: _Run) -> str:
    if not run.manifest:
        return _missing("manifest.json is missing, so configuration, seeds and versions are not known.")
    rest = {key: value for key, value in run.manifest.items() if key not in ("recipe", "config", "stages")}
    blocks = [f"<pre>tony run recipes/{escape(run.name)}.toml</pre>" if run.recipe else ""]
    for title, content in (("Recipe", run.recipe), ("Versions, seeds and hashes", rest), ("Stages", run.stages)):
        if content:
            shown = escape(json.dumps(content, indent=1, ensure_ascii=False, default=str))
            blocks.append(f"<details><summary>{title}</summary><pre>{shown}</pre></details>")
    return "".join(blocks)


def _footer(run: _Run) -> str:
    code = run.manifest.get("code_version") or run.manifest.get("version") or run.manifest.get("code")
    version = f" · {escape(str(code))}" if isinstance(code, str) else ""
    mark = str(run.summary.get("model_fingerprint") or "")
    return f"Written by Tony from the files of run <code>{escape(run.name)}</code>{version}" + (
        f" · model {escape(mark[:12])}" if mark else ""
    )


# -------------------------------------------------------------------------------------------------------------- words


def _missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'


def _error(result: dict) -> float:
    return _number(result.get("stderr")) or 0.0


def _n(result: dict) -> str:
    return _thousands(result.get("n"))


def _thousands(value: Any) -> str:
    number = _number(value)
    return f"{number:,.0f}" if number is not None else "?"


def _value(value: float) -> str:
    if abs(value) >= 1000 or (abs(value) > 1 and value == int(value)):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 2 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _energy(watt_hours: float) -> str:
    return f"{watt_hours:.2g} Wh" if watt_hours < 1000 else f"{watt_hours / 1000:.3g} kWh"
