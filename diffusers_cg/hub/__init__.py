"""Publishing to and loading from the Hugging Face Hub."""
