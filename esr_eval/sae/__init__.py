"""SAEs, of which only the rows that a spec names stay in memory."""
