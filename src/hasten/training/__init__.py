"""The training job: settings, the trainer, its callbacks, and the way from a configuration to an adapter on disk."""
