"""Composes tasks, systems, sampler, sandbox and coach into episodes. No collective is ever entered here."""
