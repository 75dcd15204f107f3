"""The study: methods, ledger, table, verdict."""
