"""What is right and wrong with a machine, subject by subject: pure functions from evidence to findings."""
