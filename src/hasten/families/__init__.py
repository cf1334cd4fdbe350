"""What hasten knows about each architecture: one short declarative file per family."""
