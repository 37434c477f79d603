"""Contrastive learning between a signal and text: one training loop, parts chosen by Hydra. `load(run)` opens a trained model."""
