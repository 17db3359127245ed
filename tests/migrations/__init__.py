"""Every revision, on both engines, with rows in every table."""
