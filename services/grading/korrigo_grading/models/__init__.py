"""The rows of grading and the hand-written statements on them; flows call these, nothing else does."""
