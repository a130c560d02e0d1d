"""Final PDFs: a manifest in, a verified PDF out. Knows nothing of the business."""
