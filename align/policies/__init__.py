"""Duplex policies behind one protocol (`align.policies.base.DuplexPolicy`)."""
