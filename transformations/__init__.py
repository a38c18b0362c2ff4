"""Behaviors → clean behaviors → histories → features."""
