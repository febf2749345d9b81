"""Training what a method needs: Kangaroo adapters, Medusa heads, REST datastores."""
