"""What outcomes look like: tables as cells of text, figures as matplotlib objects."""
