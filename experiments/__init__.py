"""Claims of the papers, tried at a scale that two cores can do: `python -m experiments NAME`.

Each module is one experiment: its docstring is the claim, `SETTINGS` what is trained, `report` what came out.
"""
