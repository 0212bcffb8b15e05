"""Running a study: its configuration, its trials, and everything that it writes down."""
