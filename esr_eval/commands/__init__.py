"""The commands of `esr-eval`, by what they are about; heavy imports wait inside them."""
