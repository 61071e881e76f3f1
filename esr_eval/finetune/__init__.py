"""Self-correction training: examples, mixes, LoRA, and a card for what comes out.

Source: the paper's fine-tuning experiment (arXiv 2602.06941): a model is trained on answers that
begin off-topic, say so and start again, with the loss on the correction and the answer alone.
"""
