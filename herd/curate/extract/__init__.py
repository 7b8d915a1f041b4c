"""A web page to text: its own content, with code, formulas and tables as they were written."""
