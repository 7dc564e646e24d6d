"""Messages and what they mean: shared by server and client, knows neither."""
