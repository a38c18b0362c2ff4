"""Policies, ticks, ledger, logs, engine, and the online and offline stores."""
