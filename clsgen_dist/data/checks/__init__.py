"""What `clsgen data check` looks at, finds and shows."""
