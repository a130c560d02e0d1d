"""How grading writes its events: one place for types, actions and metadata keys (domain.md 1.3)."""
