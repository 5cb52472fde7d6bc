"""What searches over recipes choose from, and what chooses."""
