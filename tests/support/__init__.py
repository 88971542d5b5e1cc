"""Builders and checks that tests share; conftest.py holds the fixtures."""
