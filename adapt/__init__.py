"""Making a domain model of a pretrained one."""
