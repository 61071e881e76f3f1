"""Tables, comparisons and the report, from stored logs; no model is loaded."""
