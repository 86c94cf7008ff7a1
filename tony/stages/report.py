"""Stages that measure the released model and write its card."""

from tony.evals import card as cards
from tony.evals import suite
from tony.stages.codecs import corpus_of


def evaluate(context) -> dict:
    """Every evaluation of the suite -> `eval/`, `summary.json`."""
    summary = suite.evaluate(
        context.directory, n=dict(context.recipe.eval.n), corpus=corpus_of(context), console=context.console
    )
    return {result["name"]: result["value"] for result in summary["results"]}


def card(context) -> dict:
    """`card.html`."""
    return {"card": str(cards.render(context.directory))}
