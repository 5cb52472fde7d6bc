"""Choosing among what was measured: plain data in, a choice out; no model is touched here."""
