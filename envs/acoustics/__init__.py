"""How a conversation sounds: surroundings, room, echo of the agent, telephone and network. One effect a file."""
