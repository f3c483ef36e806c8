"""Policies that run elsewhere: Uptake as the client of a server, in real time, for evaluation only."""
