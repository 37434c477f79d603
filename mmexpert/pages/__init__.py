"""Pages made of a run's files: self-contained HTML, no script, no network, no torch."""
