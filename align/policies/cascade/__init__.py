"""A cascade (turn detector, responses, voice) whose turn control can be trained."""
