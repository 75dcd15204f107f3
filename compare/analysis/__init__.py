"""What a ledger says: curves with intervals, crossings, costs, a verdict. Draws from rows alone."""
