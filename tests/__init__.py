"""Tests in three tiers: unit (seconds), integration (whole flows), learning (a policy really learns)."""
