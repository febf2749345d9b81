"""The target model that every method shares."""
