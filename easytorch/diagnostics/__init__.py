"""Messages for errors; runs only after an exception."""
