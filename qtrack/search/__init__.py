"""How searches decide what to try next: pure functions on plain data, which stages put together."""
