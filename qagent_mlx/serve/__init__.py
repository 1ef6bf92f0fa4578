"""Recommendations over HTTP: one worker thread computes, an asyncio loop answers."""
