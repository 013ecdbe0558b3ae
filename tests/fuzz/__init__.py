"""Whole experiments at random on markets of known truth, walked from the file to the verdict, and judged from outside.

    markets                   bars of known truth: laws, clocks, holes
    schema, experiments       what a document may say, and valid documents at random
    mistakes                  documents and data that are wrong, and when that must be said
    runs, accounts, scores    walking one, reading what it left, and the same figures by their definitions
    checks, account_checks    what the files must say of forecasts, verdict and account
    scenarios                 other bars and other data for a finished run
    reruns, drawn_accounts    other runs beside it, and accounts without a model
    campaign, figures         one seed from beginning to end, and what only many runs can judge
    summary, __main__         the page of many runs; `python -m tests.fuzz SEED`

It calls nothing but the document, `run`, `train`, `load_run`, `read_bars`, `Store`, `run_backtest` and the commands.
A check is a function under `@check`, a scenario one under `@scenario`; both yield sentences, none where all is well.
"""
