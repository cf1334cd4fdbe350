"""An adapter's factor beside the weight that is being written out; see README.md."""
