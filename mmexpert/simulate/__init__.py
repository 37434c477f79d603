"""The embedded data of every task: signals computed from known causes, with texts that tell those causes."""
