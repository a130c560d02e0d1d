"""The memory: every event of every room, append-only, complete by number and provable by hash."""
