"""How an objective is trained, saved, resumed, tracked and scored; the only place that knows Accelerate."""
