"""The report page: one file with the study's figures, sounds and its model."""
