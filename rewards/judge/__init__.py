"""Judgement by a language model: what is asked, of whom, and what becomes of an answer that does not come. No torch."""
