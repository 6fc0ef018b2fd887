"""The functions that `import alignjax` has for programs and notebooks; see docs/library.md."""
