"""The analysis of a ledger: confidence intervals, curves, costs and the verdict. Reads rows only."""
