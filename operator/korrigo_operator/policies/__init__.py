"""Decisions without side effects: facts, a policy and the time in, a decision with its reason out."""
