"""Behaviors that arrive as a stream: sources, micro-batches as ticks, workers, and what they measure."""
