"""Formats: one module a code or layout, each giving a RawRun; `table` says which file is whose."""
