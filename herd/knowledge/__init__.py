"""One's own files as passages: read, cut along their structure, searched, and cited by the program."""
