"""Programs that look at what a role left behind. They run inside a fresh sandbox workspace and are read as text; the
host imports none of them. Each reads request.json, and writes report.json: {"facts": {...}, "fault": text or null}.
"""
