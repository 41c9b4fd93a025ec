"""Image quality of every series: measures, checks with thresholds, pictures, and the page that shows them."""
