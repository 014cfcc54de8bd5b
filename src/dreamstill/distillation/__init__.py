"""Train a student toward its teacher."""
