"""Thin entry points over the library: run and publish notebooks, render, train."""
