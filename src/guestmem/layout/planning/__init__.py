"""Better layouts: file offsets, GPA moves, and what a migration to larger pages must move."""
