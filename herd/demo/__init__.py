"""What knows the demo's subject, the documentation of Python: its pages, facts, questions and preferences."""
