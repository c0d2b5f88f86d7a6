"""Losses as functions of features and logits: those of BLIP-2's first stage, and those of distillation."""
