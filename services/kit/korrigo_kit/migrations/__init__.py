"""The one alembic environment of all rooms, and the tables that kit brings into each."""
