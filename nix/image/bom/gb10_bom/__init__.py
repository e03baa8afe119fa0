"""What is in an image: bills of materials, VEX and provenance (docs/security.md)."""
