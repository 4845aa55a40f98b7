"""mappa trains a team of LLM agents end to end on one node, with a process reward for every action."""

__version__ = "0.1.0"
