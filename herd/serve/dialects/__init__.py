"""The dialects that clients speak: what may be asked, and how it is answered, a file each over one form of a turn."""
