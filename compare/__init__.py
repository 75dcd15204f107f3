"""The study: arms, ledger, table, verdict."""
