"""The embedded subject: its weights' whereabouts, its SAE, labels and strengths."""
