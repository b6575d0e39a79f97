"""Dockerfiles, read: text to instructions (`lines`, `instructions`), variables (`words`), `.dockerignore` (`ignore`), and what
an instruction does to an image's configuration (`configuring`). Pure functions only. The source of all rules is the Dockerfile
reference; sentences of errors follow the Docker Engine's."""
