"""What decides about one document: every filter in order, and how good its text is."""
