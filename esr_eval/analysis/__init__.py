"""From logs to tables: everything here reads Inspect logs and loads no model."""
