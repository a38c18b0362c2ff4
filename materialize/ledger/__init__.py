"""What was done, in SQL: ticks, fills, generations, offsets, leases and erasures."""
