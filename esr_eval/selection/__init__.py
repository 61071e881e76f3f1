"""Which latents to evaluate: concrete labels, irrelevant to the tasks."""
