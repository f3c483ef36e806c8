"""Learning: policies, rollouts, losses, advantages, trainers, evaluation and reports."""
