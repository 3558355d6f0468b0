"""Prediction, embeddings and detection on recordings of any length."""
