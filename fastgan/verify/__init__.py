"""What a user can check on the machine at hand."""
