"""What watches the host from outside reads here: figures, scrape targets, rules, dashboards, logs."""
