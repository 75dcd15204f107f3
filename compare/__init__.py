"""The study: methods, ledger, report with table, curves and verdict."""
