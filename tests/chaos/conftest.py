"""The chaos tests start instances of their own: nothing shared may be hurt."""
