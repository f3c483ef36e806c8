"""Language models behind an OpenAI-compatible endpoint, for judges and for users: asked in the background, cached, and
never waited for longer than was said. No torch; nothing here is imported before somebody asks one."""
