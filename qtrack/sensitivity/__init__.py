"""How much each layer matters, measured on a model: its error at each precision, and what that costs."""
