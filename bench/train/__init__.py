"""Training what a method needs: Kangaroo adapters, Medusa heads, small models, REST datastores."""
