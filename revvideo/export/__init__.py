"""Export: trained models as files that run without revvideo, checked against the model on real clips."""
