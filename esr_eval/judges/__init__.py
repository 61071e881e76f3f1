"""The offline judge: a model provider that speaks the grader's protocol without a hosted model."""
