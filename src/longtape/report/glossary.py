"""What the words of the report mean, for a reader who hovers over them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from markupsafe import Markup, escape

GLOSSARY: Mapping[str, str] = {
    "Sharpe": "Mean return over its deviation, a year. Its standard error over n years is about 1/√n.",
    "± s.e.": "Standard error of the Sharpe ratio (Lo 2002).",
    "return / s.e.": "Mean return in its standard errors: beyond ± 2 luck hardly explains it.",
    "drawdown": "Loss from the highest equity so far.",
    "turnover a year": "Value traded in a year over the mean equity.",
    "turnover": "Value traded over equity.",
    "exposure": "Value of all positions, long and short, over equity.",
    "buy & hold": "Bought at the start in equal shares, and kept.",
    "flat": "Nothing is ever held: what a forecast of zero trades.",
    "momentum": "Long what rose over the last month, short what fell.",
    "mean reversion": "Long what fell over the last week, short what rose.",
    "random strategies": "The strategy's own positions begun at another bar, in half the cases backwards: same turnover"
    " and holding times, no connection with the market.",
    "bp": "Basis point: a hundredth of a percent.",
    "R² against zero": "1 − squared error over the squared error of forecasting zero; above 0 is better than saying"
    " nothing.",
    "R²": "1 − squared error over that of the mean of the test period.",
    "RMSE": "Root of the mean squared error.",
    "MSE": "Mean squared error.",
    "MAE": "Mean absolute error.",
    "QLIKE": "Loss of a variance forecast f of y: y/f − ln(y/f) − 1. Smaller is better, 0 is perfect.",
    "CRPS": "Continuous ranked probability score: the error of a whole distribution; of a point, its absolute error.",
    "hit rate": "Share of forecasts whose sign was right.",
    "log loss": "Mean of −ln P(what happened). Smaller is better.",
    "Brier": "Squared error of the probabilities. Smaller is better.",
    "accuracy": "Share of labels that the likeliest class hits.",
    "macro F1": "Mean over the classes of the harmonic mean of precision and recall.",
    "weighted F1": "The same, weighted by how often each class occurs.",
    "MCC": "Matthews' correlation: 0 for chance, 1 for certainty.",
    "p": "Probability of a difference at least as large if both were equally good (Diebold–Mariano).",
    "p, differs from longtape": "Diebold–Mariano test of equal loss: small means that the difference is hardly luck.",
    "skill": "1 − loss over the baseline's loss: 0 is as good, above 0 better.",
    "coverage": "Share of what happened that lay inside the interval; it should be the level.",
    "interval score": "Width of the interval plus a fine for what lies outside (Gneiting & Raftery 2007).",
    "pinball": "Loss of the interval's two bounds as quantiles.",
    "log-HAR": "Volatility from yesterday's, last week's and last month's, in logarithms.",
    "zero": "The forecast that nothing changes.",
    "last value": "The forecast that what was will be.",
    "AR(1)": "A line on the last return.",
    "training mean": "The mean, or the frequencies, of the training period.",
    "fingerprint": "A hash of the data: equal fingerprints, equal data.",
    "break-even": "The cost a side at which nothing of the gain is left.",
    "deflated Sharpe": "Probability that the true Sharpe is above what the best of so many tries has by chance.",
}  # fmt: skip
_WORDS = re.compile(
    r"(?<![\w])("
    + "|".join(re.escape(word) for word in sorted(GLOSSARY, key=len, reverse=True))
    + r")(?![\w²&])"
)
_ALONE = ("p", "zero", "flat", "R²", "bp", "momentum")  # words that mean this only where they stand alone


def explained(text: str) -> Markup:
    """The text with its known words marked; a word of many meanings only where it is all there is."""
    if text in GLOSSARY:
        return _marked(text)
    parts = _WORDS.split(text)
    return Markup("").join(
        _marked(part) if number % 2 and part not in _ALONE else escape(part)
        for number, part in enumerate(parts)
    )


def _marked(word: str) -> Markup:
    return Markup('<abbr title="{}" tabindex="0">{}</abbr>').format(GLOSSARY[word], word)
