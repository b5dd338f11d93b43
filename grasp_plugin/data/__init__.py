"""Loaders of event data sets from files the user has."""
