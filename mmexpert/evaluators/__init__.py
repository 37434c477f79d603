"""How a task is scored: (objective, loaders, accelerator, part) -> Evaluation."""
