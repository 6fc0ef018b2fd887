"""What `import alignjax` exposes for programs and notebooks; see docs/library.md."""
